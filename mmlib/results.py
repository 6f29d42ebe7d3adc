"""The ledger: every number that the book states, and where it came from.

A notebook calls :func:`record` with each number it measures. What happens then depends on who
runs it, through the environment variable ``MMLIB_LEDGER``:

* not set (a reader): one line compares the number with the book's;
* ``write`` (``make execute``, ``make train``): the row goes into ``NN.json`` in the ledger's
  folder, ``mmlib/ledger`` or ``MMLIB_LEDGER_DIR``;
* ``check`` (the tests): an ``AssertionError`` when the number has left its tolerance.

A measured number in Markdown is followed by ``<!--L:01.recall_attention-->``;
:func:`check_markdown` compares the two. :func:`stale_rows` names rows whose code has changed since.
"""

import datetime
import json
import math
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from mmlib import __version__
from mmlib.fingerprint import hash_module, hash_notebook, loaded_sources, source_path
from mmlib.machine import describe, peak_memory

LEDGER = Path(__file__).parent / "ledger"

_ID = re.compile(r"\d\d\.[a-z0-9_]+")
_MARK = re.compile(r"<!--\s*L:\s*(.*?)\s*-->")
_TIMES = re.compile(r"^(x|times)$")
_CODE = re.compile(r"^(```+|~~~+).*?^\1|(`+)(?!`).+?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)])[-+])?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+|\d+)(?P<fraction>\.\d+)?"
    r"(?:[eE](?P<exponent>[-+]?\d+)|\s*(?:\\times|×)\s*10\^\{?(?P<power>-?\d+)\}?)?"
    r"(?P<tail>[^\d\n]{0,40})$"
)

_started = psutil.Process().create_time()


def start() -> None:
    """Start the clock and the GPU's peak memory anew: the next rows are measured from here.

    Without it, the time of a row runs from the start of the process (of the notebook's kernel).
    """
    global _started
    _started = time.time()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def record(
    id: str,
    value: Any,
    *,
    tolerance: Any,
    baseline: Any = None,
    unit: str = "",
    metric: str = "",
    seed: int | None = None,
) -> int | float:
    """Record a number that was just measured: print, write or check it (see the module).

    Args:
        id: ``"NN.name"``: the chapter, a dot, lower-case letters, digits and underscores.
        value: The number, or a tensor or array that holds one number.
        tolerance: How far the number may be away on another machine; not negative.
        baseline: The number to beat, if there is one.
        unit: ``"%"``, ``"ms"``, ...; empty for a plain number.
        metric: What was measured, in a few words; by default the name in ``id``.
        seed: The seed it was measured with.

    Returns:
        The value, as an ``int`` or ``float``.

    Raises:
        TypeError: ``value``, ``baseline`` or ``tolerance`` is no number.
        ValueError: The id has another form, a number is not finite, the tolerance is negative,
            or ``MMLIB_LEDGER`` is none of the three.
        AssertionError: Under ``check``: the ledger has no such row, or its value is further away
            than the tolerance. Under ``write``: the same for a row of a long run, which only
            ``make train`` may change.
    """
    if not (isinstance(id, str) and _ID.fullmatch(id)):
        raise ValueError(f"id must be a chapter and a name, as '01.recall_attention': got {id!r}")
    value = _number("value", value)
    tolerance = _number("tolerance", tolerance)
    baseline = None if baseline is None else _number("baseline", baseline)
    if tolerance < 0:
        raise ValueError(f"tolerance must not be negative: got {tolerance}")
    mode = os.environ.get("MMLIB_LEDGER", "")
    if mode not in ("", "write", "check"):
        raise ValueError(f"MMLIB_LEDGER must be 'write', 'check' or unset: got {mode!r}")

    folder = Path(os.environ.get("MMLIB_LEDGER_DIR") or LEDGER)
    rows = read(folder, chapter=id[:2])
    stored = rows.get(id)
    row = {
        "id": id,
        "chapter": id[:2],
        "metric": metric or id[3:].replace("_", " "),
        "value": value,
        "baseline": baseline,
        "tolerance": tolerance,
        "unit": unit,
        "seed": seed,
    }
    if mode == "write":
        row |= _circumstances()
        if stored and stored["origin"] == "train" and row["origin"] != "train":
            _assert_close(row, stored)
        else:
            _write(folder / f"{id[:2]}.json", rows | {id: row})
    elif mode == "check":
        _assert_close(row, stored)
    print(_line(row, None if mode == "write" else stored, reader=mode == ""))
    return value


def read(folder: Path | str | None = None, chapter: str | None = None) -> dict[str, dict]:
    """The ledger's rows by id.

    Args:
        folder: The ledger's folder; by default the one that the package ships.
        chapter: ``"01"`` for the rows of one chapter; by default all.

    Raises:
        ValueError: A file of the ledger cannot be read.
    """
    rows: dict[str, dict] = {}
    for path in sorted(Path(folder or LEDGER).glob(f"{chapter or '[0-9][0-9]'}.json")):
        try:
            rows |= {row["id"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"the ledger's file {path.name} cannot be read: {error!r}") from error
    return rows


def table(chapter: str | int | None = None, folder: Path | str | None = None) -> list[dict]:
    """The ledger's rows as a list, in the order of their ids.

    Args:
        chapter: ``1`` or ``"01"``; by default all chapters.
        folder: The ledger's folder; by default the one that the package ships.
    """
    name = None if chapter is None else f"{int(chapter):02d}"
    return [row for _, row in sorted(read(folder, name).items())]


def stale_rows(
    ledger_dir: Path | str, chapters_dir: Path | str, training_dir: Path | str | None = None
) -> dict[str, str]:
    """Rows whose code has changed since they were measured, and what changed.

    Args:
        ledger_dir: The ledger's folder.
        chapters_dir: The folder of the notebooks.
        training_dir: The folder of the long runs' scripts; by default ``book/training`` beside
            the notebooks' folder.

    Returns:
        ``{id: what changed}``, empty when every row is fresh.
    """
    chapters = Path(chapters_dir)
    training = Path(training_dir) if training_dir else chapters.parent / "book" / "training"
    stale = {}
    for id, row in sorted(read(ledger_dir).items()):
        changed = []
        for name, old in row["sources"].items():
            path = source_path(name, chapters, training)
            if not path.exists():
                changed.append(f"{name} is gone")
            elif (hash_notebook if path.suffix == ".ipynb" else hash_module)(path) != old:
                changed.append(f"{name} has changed")
        if changed:
            command = "train" if row["origin"] == "train" else "execute"
            again = f"run make {command} CHAPTER={row['chapter']}"
            stale[id] = f"{', '.join(changed)}; {again} (or delete the row if nothing records it)"
    return stale


def check_markdown(text: str, ledger: Mapping[str, Mapping]) -> list[str]:
    r"""Compare each number that ``<!--L:id-->`` follows with its row, at the printed precision.

    The mark comes right after the number and its unit: ``99.2 %<!--L:02.exact-->``. A percentage
    is compared with the row's fraction or its value in percent; ``12,500``, ``1.5e-4`` and
    ``$1.5 \times 10^{-4}$`` are read too. Marks inside code are left alone.

    Args:
        text: Markdown.
        ledger: Rows by id, as :func:`read` gives them.

    Returns:
        One sentence for each problem; empty when every number is right.

    >>> ledger = {"01.recall": {"value": 0.99231, "unit": ""}}
    >>> check_markdown("It recalls 99.2 %<!--L:01.recall--> of them.", ledger)
    []
    >>> check_markdown("It recalls 0.98<!--L:01.recall-->.", ledger)
    ['01.recall: the text says 0.98, the ledger 0.99231']
    """
    # A mark inside code is an example of one.
    text = _CODE.sub(lambda found: _MARK.sub("", found[0]), text)
    problems, end = [], 0
    for mark in _MARK.finditer(text):
        before, end = text[end : mark.start()], mark.end()
        problem = _compare(before, ledger.get(mark[1]))
        if problem:
            problems.append(f"{mark[1]}: {problem}")
    return problems


def format_number(value: int | float, unit: str = "") -> str:
    """A number in at most four significant digits, with its unit.

    >>> format_number(0.98765432, "%"), format_number(12500), format_number(1234.5, "ms")
    ('0.9877 %', '12,500', '1,234 ms')
    """
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {unit}".rstrip()


def _number(name: str, value: Any) -> int | float:
    if hasattr(value, "item") and getattr(value, "size", 1) is not None:
        try:
            value = value.item()
        except (RuntimeError, ValueError):
            raise TypeError(f"{name} must be one number: got {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number: got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite: got {value}")
    # Six digits are more than any measurement holds, and keep the differences short.
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _assert_close(row: dict, stored: dict | None) -> None:
    id, value = row["id"], row["value"]
    if stored is None:
        raise AssertionError(
            f"{id} is not in the ledger (value {value}): run make execute CHAPTER={row['chapter']}"
        )
    tolerance = stored["tolerance"]
    # The slack is for the rounding of decimals, so that |0.3 - 0.2| <= 0.1.
    if abs(value - stored["value"]) > tolerance + 1e-9 * max(1.0, abs(stored["value"])):
        raise AssertionError(f"{id} = {value}, but the ledger has {stored['value']} ± {tolerance}")


def _line(row: dict, stored: dict | None, reader: bool) -> str:
    notes = []
    if stored:
        notes.append(f"the book: {format_number(stored['value'])} ± {stored['tolerance']:g}")
        if abs(row["value"] - stored["value"]) > stored["tolerance"]:
            notes.append("outside the tolerance")
    elif reader:
        notes.append("not in the book's ledger")
    if row["baseline"] is not None:
        notes.append(f"baseline {format_number(row['baseline'])}")
    line = f"{row['id']}: {format_number(row['value'], row['unit'])}"
    return f"{line} ({'; '.join(notes)})" if notes else line


def _circumstances() -> dict[str, Any]:
    notebook, script = os.environ.get("MMLIB_NOTEBOOK"), os.environ.get("MMLIB_TRAINING")
    if not (notebook or script):
        raise ValueError(
            "MMLIB_LEDGER=write needs MMLIB_NOTEBOOK or MMLIB_TRAINING, the file that runs; "
            "make execute and make train set it"
        )
    facts = {
        "machine": describe(),
        "minutes": round((time.time() - _started) / 60, 2),
        "peak_memory_mb": round(peak_memory() / 2**20),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        facts["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return facts | {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "mmlib": __version__,
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "origin": "train" if script else "execute",
        "sources": loaded_sources(script or notebook),
    }


def _write(path: Path, rows: dict[str, dict]) -> None:
    text = json.dumps([rows[id] for id in sorted(rows)], indent=2, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _compare(before: str, row: Mapping | None) -> str | None:
    """What is wrong with the last number of ``before``, or None."""
    if row is None:
        return "there is no such row in the ledger"
    line = re.split(r"\n", before)[-1].replace("{,}", ",").replace("\u2212", "-")
    line = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", ",", line)
    found = _NUMBER.search(line)
    if not found:
        return "no number comes before the mark"
    tail = re.sub(r"\\[,;!]|[\s\u00a0\u2009\u202f*_$~`{}\\()]", "", found["tail"])
    tail, unit = (_TIMES.sub("×", re.sub(r"\s", "", name)) for name in (tail, row["unit"]))
    value, sign = row["value"], "%" if tail == "%" else ""
    if sign and unit != "%":
        value, tail = 100 * value, unit
    if tail.strip(".") and tail != unit:
        return f"the text has the unit {tail!r}, the ledger {unit!r}"
    if unit == "%" and not sign:
        return "the ledger's value is in percent, the text's is not"
    power = int(found["exponent"] or found["power"] or 0)
    printed = float(
        f"{found['sign'] or ''}{found['digits'].replace(',', '')}{found['fraction'] or ''}"
    )
    half = 0.5 * 10.0 ** (1 - len(found["fraction"] or ".")) * 10.0**power
    if abs(printed * 10.0**power - value) <= half * (1 + 1e-6):
        return None
    shown = found[0].removesuffix(found["tail"]) + sign
    return f"the text says {shown}, the ledger {value:.6g}"
