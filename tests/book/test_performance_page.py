"""The page on speed and memory is what `make bench` wrote, and goals work as they are meant to."""

import json
import os
import shutil
import subprocess
import sys

import performance
import pytest
from common import ROOT
from performance import Goal

BENCH = ROOT / "tests" / "bench"


@pytest.fixture(scope="module")
def report() -> dict:
    return json.loads(performance.REPORT.read_text(encoding="utf-8"))


def test_the_page_is_what_the_report_says(report):
    page = performance.REPORT.with_suffix(".md").read_text(encoding="utf-8")
    assert performance.page(report) == page


def test_every_bench_file_has_a_goal(report):
    files = {area["file"] for area in report["areas"] if area["goals"]}
    assert files == {path.name for path in BENCH.glob("test_*.py")}


def test_goals_agree_with_their_numbers_and_misses_have_reasons(report):
    for area in report["areas"]:
        for goal in (Goal(**given) for given in area["goals"]):
            met = {"at most": goal.measured <= goal.bound, "at least": goal.measured >= goal.bound}
            assert goal.met == met[goal.sense], goal
            assert not (goal.met and goal.reason), goal


def test_the_page_names_every_missed_goal(report):
    goals = [Goal(**goal) for area in report["areas"] for goal in area["goals"]]
    missed = [goal for goal in goals if not goal.met]
    page = performance.page(report)
    assert f"{len(goals) - len(missed)} of {len(goals)} goals are met" in page
    assert page.count("**missed**") == len(missed)


def test_text_of_a_cell_means_itself():
    assert performance._cell("a|b*c_d[e]") == r"a\|b\*c\_d\[e]"
    assert performance._cell("**missed**") == "**missed**"


SMALL = '''
"""A bench."""

import time

AREA = "Sleep"


def test_known_miss(goal):
    goal("naps", 3, at_most=2, known="tired")


def test_missed(side_by_side):
    table = side_by_side(
        "naps", {"long": lambda: time.sleep(0.02), "short": lambda: time.sleep(0.002)}, rounds=3
    )
    table.per_second(2, "naps")
    table.as_fast("long", "short")
    table.as_fast("short", "long")


def test_error():
    raise ZeroDivisionError


def test_after_it(goal):
    goal("naps", 2, at_least=2)
'''


def run(tmp_path, *arguments):
    tmp_path.joinpath("test_bench_small.py").write_text(SMALL, encoding="utf-8")
    shutil.copy(BENCH / "conftest.py", tmp_path)
    path = os.pathsep.join([str(ROOT), str(ROOT / "book" / "scripts")])
    environment = {"PYTHONPATH": path, "MMLIB_BENCH_REPORT": str(tmp_path / "report.json")}
    command = [sys.executable, "-m", "pytest", "--benchmark-disable", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path), *arguments],
        env=os.environ | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_missed_goal_is_reported_and_ends_the_run_red(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 2 passed" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    [area] = report["areas"]
    assert area["name"] == "Sleep" and area["about"] == "A bench."
    assert [goal["met"] for goal in area["goals"]] == [False, False, True, True]
    assert [goal["reason"] for goal in area["goals"]] == ["tired", "", "", ""]
    [table] = area["tables"]
    assert [row["name"] for row in table["rows"]] == ["long", "short"]
    assert table["rows"][0]["rate"] == pytest.approx(2 / table["rows"][0]["seconds"], rel=1e-2)
    assert table["rows"][1]["ratio"] < 1
    names = [name.rpartition("::")[2] for name in report["failed"]]
    assert names == ["test_missed", "test_error"]
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert page == performance.page(report)
    assert "2 of 4 goals are met" in page and "tired" in page and "test_error" in page


def test_a_goal_that_is_known_to_be_missed_leaves_the_run_green(tmp_path):
    done = run(tmp_path, "-k", "known or after")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISSED (tired)" in done.stdout
