"""The repository is what it says: its environments, its wheel, its workflows, its layout."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import address
import common
import lock
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = common.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = sorted((ROOT / "mmlib").rglob("*.py"))

# What Colab's image had in August 2026; a fresh install there must change none of it.
COLAB = {
    "python": "3.13.0",
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "transformers": "5.15.0",
    "numpy": "2.1.3",
    "matplotlib": "3.10.0",
    "einops": "0.8.2",
    "accelerate": "1.14.0",
    "safetensors": "0.8.0",
    "peft": "0.20.0",
    "ipython": "7.34.0",
    "ipykernel": "6.17.0",
}
RUNTIME = [
    *PROJECT["dependencies"],
    *(
        line
        for extra in ("pretrained", "speech", "coco", "search", "serve", "export", "system")
        for line in EXTRAS[extra]
    ),
]


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


# ---- environments


@pytest.mark.parametrize("line", RUNTIME)
def test_runtime_dependencies_have_lower_bounds_only(line):
    operators = {specifier.operator for specifier in Requirement(line).specifier}
    assert operators == {">="}


IN_COLAB = [
    line
    for line in [f"python{PROJECT['requires-python']}", *RUNTIME]
    if Requirement(line).name in COLAB
]


@pytest.mark.parametrize("line", IN_COLAB)
def test_colab_satisfies_the_runtime_dependencies(line):
    requirement = Requirement(line)
    assert COLAB[requirement.name] in requirement.specifier


# What else brings a package that is imported: jupyter-book is Sphinx and docutils, and every
# notebook's kernel is IPython, which nothing but a notebook asks of the library.
BROUGHT = {"ipython", "sphinx", "docutils"}
OURS = {"mmlib", "mmbook", *(path.stem for path in (ROOT / "book" / "scripts").glob("*.py"))}
DISTRIBUTIONS = importlib.metadata.packages_distributions()


def undeclared(path: Path, declared: set[str]) -> set[str]:
    """Imports of a file from packages that are not among those declared."""
    missing = set()
    names = {name.split(".")[0] for name in imports(path)}
    for name in names - sys.stdlib_module_names - OURS:
        packages = {canonicalize_name(package) for package in DISTRIBUTIONS.get(name, [name])}
        if not packages & declared:
            missing.add(name)
    return missing


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT / "mmlib")))
def test_every_import_of_the_library_is_declared(path):
    assert undeclared(path, set(requirements(RUNTIME)) | BROUGHT) == set()


def test_every_import_of_tests_and_scripts_is_declared():
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    declared = set(requirements(lines)) | BROUGHT
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "book").rglob("*.py")]
    assert len(files) > 20
    missing = {str(path.relative_to(ROOT)): undeclared(path, declared) for path in files}
    assert {path: names for path, names in missing.items() if names} == {}


def test_an_undeclared_import_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "x.py"
    path.write_text("import os\nimport torch.nn\nfrom yaml import load", encoding="utf-8")
    assert undeclared(path, {"torch"}) == {"yaml"}


def test_environment_yml_equals_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, last = environment["dependencies"]
    python = next(line for line in conda if line.startswith("python"))
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    first, *named = last["pip"]
    assert first == "-e .[dev]"
    every = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    declared = requirements(every)
    named = requirements(named)
    assert {name: named[name].specifier for name in named} == {
        name: declared[name].specifier for name in named
    }
    assert set(named) >= {
        "jupyter-book",
        "torch",
        "torchvision",
        "transformers",
        "matplotlib",
        "einops",
        "pytest",
        "nbval",
    }


def test_dev_installs_every_extra():
    (dev,) = map(Requirement, EXTRAS["dev"])
    assert dev.name == PROJECT["name"]
    assert dev.extras == set(EXTRAS) - {"dev"}


def test_chapters_need_what_their_data_and_weights_need():
    (chapters,) = map(Requirement, EXTRAS["chapters"])
    assert chapters.name == PROJECT["name"]
    assert chapters.extras == {"pretrained", "speech", "serve", "export", "system"}


def test_constraints_and_lock_say_the_same_and_cover_every_dependency():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert lock.without_hashes(text) == constraints
    lines = [line for line in constraints.splitlines() if not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    assert text.count("--hash=sha256:") >= len(pins)
    every = {
        canonicalize_name(Requirement(line).name): Requirement(line)
        for lines in [PROJECT["dependencies"], *EXTRAS.values()]
        for line in lines
    }
    every.pop("mmlib")
    pinned = {canonicalize_name(pin.name): pin for pin in pins}
    for name, requirement in every.items():
        version = str(pinned[name].specifier).removeprefix("==")
        assert version in requirement.specifier, name


def test_the_lock_leaves_out_paths_and_editable_installs():
    freeze = "a==1.0\n-e /here\n# Editable\nb @ file:///there/b.whl\nc_d==2.0.post1\n"
    assert lock.clean_freeze(freeze) == "a==1.0\nc_d==2.0.post1\n"


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    notebooks = pytest.importorskip("notebooks")
    return notebooks.build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_library_and_its_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    package = ROOT / "mmlib"
    ours = {str(path.relative_to(ROOT)) for path in address.tracked() if package in path.parents}
    assert ours
    assert ours - inside == set()
    assert not [name for name in inside if "__pycache__" in name or name.startswith("tests")]
    assert wheel.stat().st_size <= 50e6


def test_the_shipped_data_are_small_and_licensed():
    folders = [path for path in (ROOT / "mmlib" / "data" / "files").iterdir() if path.is_dir()]
    assert {path.name for path in folders} >= {"emoji", "clipart"}
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) <= 7e6
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        assert {"ATTRIBUTION.md", "SHA256SUMS"} <= names
        assert any(name.startswith("LICENSE") for name in names), folder.name


@pytest.mark.parametrize("pattern", ["ledger/*.json", "data/files/emoji/*", "data/files/clipart/*"])
def test_the_data_exist(wheel, pattern):
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if Path(name).match(f"mmlib/{pattern}")]


# ---- what must not be in the repository

# Written so that this file does not hold them.
FORBIDDEN = {
    "a machine's path": r"(?<![\w.:/-])/(?:root|work|home/\w+|opt/\w+)/\w",
    "a package index": r"(?:--(?:extra-)?index-url|--find-links)[ =]\S|https?://[\w.]*pypi\.\w+/"
    r"|https?://[\w.-]*(?:pythonhosted|npmjs)\.\w+|file:///\w",
    "a secret": r"BEGIN [A-Z ]*PRIVATE KEY|ghp_[A-Za-z0-9]{20}|hf_[A-Za-z0-9]{30}",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_holds(what):
    pattern, found = re.compile(FORBIDDEN[what]), []
    for path in address.tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path != Path(__file__).resolve() and (match := pattern.search(text)):
            found.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert found == []


@pytest.mark.parametrize(
    ("what", "example"),
    [
        ("a machine's path", "/root" + "/x"),
        ("a machine's path", 'open("/home/me' + '/x")'),
        ("a package index", "pip install --index" + "-url https://x"),
        ("a package index", "https://files.python" + "hosted.org/x"),
        ("a package index", "file:" + "///opt"),
        ("a secret", "-----BEGIN RSA PRIVATE" + " KEY-----"),
    ],
)
def test_the_patterns_find_what_they_must(what, example):
    assert re.search(FORBIDDEN[what], example)


# ---- commands and workflows


def makefile_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):", text, re.MULTILINE))


def workflows() -> list[Path]:
    return sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_makefile_has_the_documented_commands():
    wanted = ["book", "test", "execute", "serve", "lab", "train", "bench", "lint", "clean", "help"]
    assert makefile_targets() >= set(wanted)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`make ([a-z]+)", readme))
    assert makefile_targets() - documented <= {"notebooks"}
    assert documented - makefile_targets() == set()


def test_the_makefile_calls_scripts_that_exist():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    scripts = re.findall(r"\$\(S\)/([\w.]+)", text)
    assert len(scripts) > 5
    assert [name for name in scripts if not (ROOT / "book" / "scripts" / name).exists()] == []


def test_there_are_workflows():
    assert {path.stem for path in workflows()} >= {"tests", "book", "weekly"}


@pytest.mark.parametrize("path", workflows(), ids=lambda path: path.stem)
def test_workflow(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow[True]  # YAML reads the key `on` as a boolean
    assert workflow["permissions"] == {"contents": "read"}
    assert "concurrency" in workflow
    called = set()
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])
            called |= set(re.findall(r"\bmake ([a-z]+)", step.get("run", "")))
    assert called
    assert called <= makefile_targets()


def test_workflows_cover_what_is_promised():
    tests, book, weekly = (
        yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
        for name in ("tests", "book", "weekly")
    )
    assert tests["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert {"push", "pull_request"} <= set(tests[True])
    assert "deploy" in book["jobs"]
    assert set(weekly["jobs"]) == {"newest", "colab", "avx2"}
    assert weekly["jobs"]["avx2"]["env"] == {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    }


def test_shell_scripts_parse():
    for path in (ROOT / ".ci" / "run", ROOT / "book" / "scripts" / "install.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True)
        assert path.stat().st_mode & 0o100, f"{path.name} is not executable"


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"]
    for key in ("message", "title", "authors", "license"):
        assert citation[key]


def test_one_version():
    import mmlib

    assert mmlib.__version__ == PROJECT["version"]


# ---- layout


def test_the_toc_lists_exactly_the_chapters():
    listed = common.chapters()
    assert len(listed) == len(set(listed))
    assert set(listed) == set((ROOT / "chapters").glob("*.ipynb"))


# A chapter's module has the chapter's name, but for these (DESIGN: chapters and modules).
MODULE_OF = {"deployment": "serving", "full_system": "system"}


# 00 checks the reader's machine and teaches nothing.
TEACHING = [path for path in common.chapters() if not path.stem.startswith("00")]


@pytest.mark.parametrize("chapter", TEACHING, ids=lambda path: path.stem)
def test_a_chapter_has_its_module_its_tests_and_its_exercises(chapter):
    number, _, name = chapter.stem.partition("_")
    module = MODULE_OF.get(name, name)
    assert exists(module)
    assert (ROOT / "tests" / f"test_{module}.py").exists()
    assert (ROOT / "mmlib" / "exercises" / f"ch{number}.py").exists()


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = path.relative_to(ROOT).with_suffix("").parts
            base = ".".join(parts[: len(parts) - node.level]) + "." if node.level else ""
            module = f"{base}{node.module or ''}".rstrip(".")
            found.add(module)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


# Imports point from a higher layer to a lower one. Chapter modules stand in the book's order,
# so that one may import another with a lower number.
LAYERS = [
    ["download", "fingerprint", "machine", "notebook", "sound"],
    ["results", "metrics", "data", "training", "search"],
    ["masks", "cache"],
    ["attention"],
    ["positions", "block", "decoding", "transformer"],
    ["encoders"],
    ["pretraining", "language_model", "fine_tuning"],
    ["fusion", "fusion_tokens", "fusion_models"],
    ["pairs", "large_batches", "triplet", "hypersphere", "contrastive"],
    ["alignment", "region_words", "swapped_words", "pointing", "graph_matching", "dual_learning"],
    [
        "class_words",
        "picture_details",
        "towers",
        "matching",
        "cross_encoder",
        "chinese_tower",
        "picture_search",
    ],
    ["matching_coco"],
    ["captioning_attention", "captioning", "captioning_transformer"],
    ["likelihoods", "quantise", "autoencoder"],
    ["judge", "marks"],
    ["vae", "discrete_vae", "importance", "tokenizer_training"],
    ["clip", "zero_shot", "small_clips"],
    ["sampling", "flow_matching", "dalle_training"],
    ["dalle"],
    ["dalle_generate", "unclip", "unmasking"],
    ["painters"],
    ["scene_unmasking"],
    ["ctc", "packing"],
    [
        "modality_dropout",
        "durations",
        "multimodal_embeddings",
        "multimodal",
        "multimodal_decoding",
        "speech_synthesis",
        "multimodal_words",
        "multimodal_lessons",
        "multimodal_tasks",
    ],
    ["lora", "trainable", "adapters", "adversarial"],
    ["vqa", "reader"],
    ["scene_vqa", "easy_model", "vqa_coco"],
    ["export", "int8", "pruning", "distillation"],
    ["applications"],
    ["serving"],
    ["system"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LEAVES = {"plotting", "exercises"}  # only notebooks and tests import these
ENTRIES = {"__init__", "__main__"}


def wrong_imports(path: Path) -> list[str]:
    """Imports of one file of the library that point the wrong way."""
    inside = path.relative_to(ROOT / "mmlib").with_suffix("").parts
    own, problems = inside[0], []
    for name in sorted(imports(path)):
        parts = name.split(".")
        if parts[0] != "mmlib" or len(parts) == 1 or not exists(parts[1]):
            continue
        other = parts[1]
        if other == own or own in LEAVES:
            continue
        if other in LEAVES:
            problems.append(f"{'/'.join(inside)} imports {name}: only notebooks and tests may")
        elif own not in ENTRIES and LEVEL[other] > LEVEL[own]:
            problems.append(f"{'/'.join(inside)} imports {name}, which is of a higher layer")
    return problems


def exists(name: str) -> bool:
    return (ROOT / "mmlib" / name).is_dir() or (ROOT / "mmlib" / f"{name}.py").exists()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT / "mmlib")))
def test_imports_point_one_way(path):
    inside = path.relative_to(ROOT / "mmlib").with_suffix("").parts
    assert inside[0] in set(LEVEL) | LEAVES | ENTRIES, "add the module to LAYERS"
    assert wrong_imports(path) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("attention.py", "from mmlib.transformer import Encoder"),
        ("attention.py", "from mmlib import transformer"),
        ("data/x.py", "import mmlib.attention"),
        ("results.py", "import mmlib.plotting"),
        ("transformer.py", "from mmlib.exercises import Report"),
        ("data/x.py", "def f():\n    from ..attention import attention"),
    ],
)
def test_an_import_that_points_the_wrong_way_is_found(tmp_path, monkeypatch, file, line):
    for name in ("attention", "transformer", "results", "plotting"):
        (tmp_path / "mmlib" / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / "mmlib" / f"{name}.py").touch()
    for name in ("data", "exercises"):
        (tmp_path / "mmlib" / name).mkdir()
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "mmlib" / file
    path.write_text(line, encoding="utf-8")
    assert wrong_imports(path)


def lines_of_code(source: str) -> int:
    """Lines of a file that are not part of a docstring."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            documented += node.body[0].end_lineno - node.body[0].lineno + 1
    return len(source.splitlines()) - documented


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT / "mmlib")))
def test_a_module_stays_one_idea(path):
    assert lines_of_code(path.read_text(encoding="utf-8")) <= 350


def test_lines_of_code_leave_docstrings_out():
    assert (
        lines_of_code('"""One\n\ntwo."""\nx = 1\n\ndef f():\n    """Doc."""\n    y = """\n"""\n')
        == 5
    )
