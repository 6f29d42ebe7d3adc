"""The repository's public address stands in one place, and one command writes it elsewhere."""

import re
import shutil
import subprocess

import address
import common
import pytest
import yaml

OLD = address.Address("-address-not-set-", "multimodal-llm-from-scratch")
NEW = address.Address("some-one", "a.book")


def test_the_parts_of_an_address():
    found = address.parse("https://github.com/some-one/a.book.git")
    assert found == NEW
    assert found.repository == "https://github.com/some-one/a.book"
    assert found.pages == "https://some-one.github.io/a.book/"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "github.com/a/b",
        "http://github.com/a/b",
        "https://example.org/a/b",
        "https://github.com/a",
        "https://github.com/a/b/c",
        "https://github.com/a b/c",
    ],
)
def test_another_kind_of_address_is_refused(url):
    with pytest.raises(ValueError, match="URL must look like"):
        address.parse(url)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("url: https://github.com/{old}", "url: https://github.com/{new}"),
        ('"mmlib @ git+https://github.com/{old}"', '"mmlib @ git+https://github.com/{new}"'),
        ("git@github.com:{old}.git", "git@github.com:{new}.git"),
        (
            "https://colab.research.google.com/github/{old}/blob/main/chapters/01.ipynb",
            "https://colab.research.google.com/github/{new}/blob/main/chapters/01.ipynb",
        ),
        ("https://{old_owner}.github.io/{old_name}/", "https://some-one.github.io/a.book/"),
        ("https://github.com/{old}-2", "https://github.com/{old}-2"),
        ("https://github.com/other/{old_name}", "https://github.com/other/{old_name}"),
    ],
)
def test_each_form_is_rewritten_and_nothing_else(before, after):
    names = {"old": OLD.slug, "new": NEW.slug, "old_owner": OLD.owner, "old_name": OLD.name}
    assert address.rewrite(before.format(**names), OLD, NEW) == after.format(**names)


def test_every_place_holds_the_address_of_pyproject():
    here = address.current()
    config = yaml.safe_load((common.ROOT / "_config.yml").read_text(encoding="utf-8"))
    citation = yaml.safe_load((common.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert config["repository"]["url"] == here.repository
    assert config.get("html", {}).get("baseurl", here.pages) == here.pages
    assert citation["repository-code"] == here.repository
    readme = (common.ROOT / "README.md").read_text(encoding="utf-8")
    assert f"git clone {here.repository}" in readme
    for chapter in common.chapters():
        assert f"git+{here.repository}" in chapter.read_text(encoding="utf-8"), chapter.name


def test_no_file_names_another_address_of_this_repository():
    here = address.current()
    pattern = re.compile(rf"([\w.-]+)(?:\.github\.io)?/{re.escape(here.name)}(?![\w-])")
    for path in address.tracked():
        if path.is_relative_to(common.ROOT / "tests"):
            continue  # this file holds examples
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        owners = {owner.removesuffix(".github.io") for owner in pattern.findall(text)}
        assert owners <= {here.owner}, path.name


def test_one_command_writes_a_new_address_everywhere(tmp_path):
    for path in address.tracked():
        target = tmp_path / path.relative_to(common.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "-A"], check=True)
    old = address.current(tmp_path)
    changed = {
        str(path.relative_to(tmp_path)) for path in address.set_address(NEW.repository, tmp_path)
    }
    assert {"pyproject.toml", "_config.yml", "CITATION.cff", "README.md"} <= changed
    assert changed >= {f"chapters/{path.name}" for path in common.chapters()}
    assert address.current(tmp_path) == NEW
    found = subprocess.run(
        ["git", "-C", str(tmp_path), "grep", "-lF", old.slug, "--", ":!tests"],
        capture_output=True,
        text=True,
    )
    assert found.stdout == ""
    assert address.set_address(NEW.repository, tmp_path) == []
