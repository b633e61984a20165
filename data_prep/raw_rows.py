"""The cells of a raw column one after another, so that an error can say which one it means.

Slow beside an engine, and only read once something is wrong, or a few rows to look ahead.
"""

import codecs
import csv
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from data_prep.csv_headers import read_header
from data_prep.raw_files import RawFiles

LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Cell:
    """A cell of a raw table."""

    where: str
    """`line 7`, or `row 7` of a format without lines; with its file where there are several."""
    value: object
    """None where it is empty."""

    def __str__(self) -> str:
        shown = repr(self.value)
        cut = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}…"
        return f"{self.where} has {cut}"


def first_cell(
    raw: RawFiles,
    column: str,
    *,
    sep: str,
    is_meant: Callable[[object], bool],
    rows: int | None = None,
) -> Cell | None:
    """The first cell that is meant, in the order of files and lines.

    Args:
        raw: the table.
        column: its column.
        sep: what parts the columns of CSV.
        is_meant: of a cell's value, which is no text only where the format has types.
        rows: look at no more than these; None: at all.
    """
    cells = (cell for file in raw.files for cell in _cells(raw, file, column, sep=sep))
    # What cannot be read here is for the engine to say.
    with suppress(csv.Error, ValueError, OSError, EOFError):
        return next((cell for cell in islice(cells, rows) if is_meant(cell.value)), None)
    return None


def is_no_number(value: object) -> bool:
    """Whether a cell holds something that is no number; an empty one holds nothing."""
    if not isinstance(value, str) or not value.strip():
        return isinstance(value, (list, dict))
    try:
        float(value)
    except ValueError:
        return True
    return "_" in value  # a number to Python alone


def odd_line(file: Path, *, sep: str, rows: int) -> str | None:
    """The first line of a CSV file with more or fewer cells than its first, among so many."""
    with suppress(csv.Error, ValueError, OSError, EOFError), _open(file) as stream:
        width = None
        for line, cells in islice(_csv_rows(stream, sep=sep), rows):
            width = width or len(cells)
            if len(cells) != width:
                return f"line {line} has {len(cells)} cells, expected {width} as in its first line"
    return None


def _cells(raw: RawFiles, file: Path, column: str, *, sep: str) -> Iterator[Cell]:
    where = "" if len(raw.files) == 1 else f" of {file}"
    for place, value in _values(raw, file, column, sep=sep):
        yield Cell(f"{place}{where}", None if value == "" else value)


def _values(
    raw: RawFiles, file: Path, column: str, *, sep: str
) -> Iterator[tuple[str, object | None]]:
    if raw.kind == "parquet":
        import pyarrow.parquet as pq

        row = 0
        for batch in pq.ParquetFile(file).iter_batches(columns=[column]):
            for value in batch.column(0).to_pylist():
                row += 1
                yield f"row {row}", value
        return
    with _open(file) as stream:
        if raw.kind == "json":
            for row, found in enumerate(json.load(stream), start=1):
                yield f"row {row}", found.get(column)
        elif raw.kind == "jsonl":
            for line, text in enumerate(stream, start=1):
                if text.strip():
                    yield f"line {line}", json.loads(text).get(column)
        else:
            place = read_header(file, setting=raw.setting, sep=sep).index(column)
            for line, cells in islice(_csv_rows(stream, sep=sep), 1, None):
                yield f"line {line}", cells[place] if place < len(cells) else None


def _open(file: Path) -> "BinaryIO | gzip.GzipFile":
    return gzip.open(file) if file.name.endswith(".gz") else file.open("rb")


def _csv_rows(stream: "BinaryIO | gzip.GzipFile", *, sep: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with its first line's number."""
    lines = codecs.iterdecode(stream, "utf-8-sig", errors="replace")
    reader = csv.reader(lines, delimiter=sep)
    line = 1
    for cells in reader:
        if cells:
            yield line, cells
        line = reader.line_num + 1
