"""The pages around the chapters say what is true of the repository."""

import re
from pathlib import Path

import pytest
import yaml

import mmlib

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"


def page(name: str) -> str:
    return (BOOK / name).read_text(encoding="utf8")


def toc_chapters() -> set[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf8"))
    files = re.findall(r"chapters/(\d\d)_\w+", str(toc))
    return set(files) - {"00"}  # checks the reader's machine; it is not part of the plan


def test_plan_says_which_chapters_are_finished():
    rows = re.findall(r"^\| (.+?) \|.+\| (finished|planned) \|$", page("index.md"), flags=re.M)
    states = {re.search(r"\b(\d\d) ", title)[1]: state for title, state in rows}
    assert list(states) == [f"{number:02d}" for number in range(1, 17)]
    assert {number for number, state in states.items() if state == "finished"} == toc_chapters()
    linked = {re.search(r"\b(\d\d) ", title)[1] for title, _ in rows if "{doc}" in title}
    assert linked == toc_chapters()


def test_teaching_plan_marks_what_is_not_written():
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", page("teaching.md"), flags=re.M)
    assert [int(week) for week, _ in rows] == list(range(1, 13))
    for week, chapters in rows:
        numbers = {f"{int(n):02d}" for n in re.findall(r"\d\d", chapters)}
        assert ("planned" in chapters) == bool(numbers - toc_chapters()), week


def glossary() -> list[tuple[str, str]]:
    body = re.search(r":::\{glossary\}\n(.+?)\n:::", page("glossary.md"), flags=re.S)[1]
    return [tuple(entry.split("\n  ")) for entry in body.split("\n\n")]


def test_glossary_is_complete_and_sorted():
    entries = glossary()
    terms = [term.lower().replace("-", " ") for term, _ in entries]
    assert terms == sorted(set(terms))
    assert f"The {len(terms)} technical terms" in page("glossary.md")
    for term, text in entries:
        match = re.fullmatch(
            r'<span lang="zh-CN">(.+)</span> · ([A-Z].+\.) \(Chapter (\d\d)\)', text
        )
        assert match, term
        assert re.search(r"[\u4e00-\u9fff]", match[1]) or match[1] == "Transformer", term
        assert 1 <= int(match[3]) <= 16, term


def test_glossary_covers_every_chapter():
    covered = {re.search(r"Chapter (\d\d)", text)[1] for _, text in glossary()}
    assert covered == {f"{number:02d}" for number in range(1, 17)}


def test_bibliography_entries_are_whole():
    entries = re.findall(r"^@(\w+)\{(\w+),\n(.+?)\n\}", page("references.bib"), re.M | re.S)
    keys = [key for _, key, _ in entries]
    assert keys == sorted(set(keys)) and len(keys) > 100
    for kind, key, body in entries:
        fields = dict(re.findall(r"^  (\w+) = \{(.+)\},?$", body, flags=re.M))
        assert {"author", "title", "year"} <= set(fields), key
        assert fields["year"] == re.search(r"\d{4}", key)[0], key
        where = {"inproceedings": "booktitle", "article": "journal", "techreport": "institution"}
        assert where.get(kind, "title") in fields, key
        if "eprint" in fields:
            # An arXiv number begins with the year and month; papers appear there first.
            assert re.fullmatch(r"\d{4}\.\d{4,5}", fields["eprint"]), key
            assert 2000 + int(fields["eprint"][:2]) <= int(fields["year"]), key
        for name, value in fields.items():  # a lost brace swallows the fields behind it
            assert value.count("{") == value.count("}"), f"{key}: {name}"


@pytest.mark.parametrize("path", sorted(BOOK.glob("*.md")), ids=lambda path: path.name)
def test_pages_have_a_section(path):
    # The theme's outline needs one; the ledger's directive writes a section for each chapter.
    assert re.search(r"^## |^```\{ledger\}", path.read_text(encoding="utf8"), flags=re.M)


def test_changelog_has_this_version():
    versions = re.findall(r"^## (\d+\.\d+\.\d+) — (\d{4}-\d\d-\d\d)$", page("changelog.md"), re.M)
    assert versions[0][0] == mmlib.__version__
