"""CSV files of one table by the order of their columns, which each file's first line names."""

import codecs
import csv
import gzip
import zlib
from dataclasses import replace
from pathlib import Path

from data_prep.raw_files import RawFiles

SEPARATORS = (",", ";", "|", "\t")
"""What may part the columns of a .csv."""


def files_by_header(
    raw: RawFiles, columns: list[str], *, sep: str
) -> list[tuple[list[str], RawFiles]]:
    """Files that name their columns in one order, and that order.

    Args:
        raw: files of one table.
        columns: of the first file, as the engine calls them.
        sep: what parts the columns.

    Raises:
        ValueError: a file lacks a column of the first one; it may have further ones.
    """
    if len(raw.files) == 1:
        return [(columns, raw)]
    first = read_header(raw.files[0], setting=raw.setting, sep=sep)
    groups: dict[tuple[str, ...], list[Path]] = {}
    for file in raw.files:
        header = read_header(file, setting=raw.setting, sep=sep)
        if missing := [name for name in first if name not in header]:
            raise ValueError(
                f"{file}: found no column {', '.join(map(repr, missing))} (columns: "
                f"{', '.join(header)}), expected those of {raw.files[0]}; correct the file or "
                f"{raw.setting}.path"
            )
        groups.setdefault(header, []).append(file)
    called = dict(zip(first, columns, strict=False))
    return [
        (
            columns
            if header == first
            else [called.get(name, f"not read {place}") for place, name in enumerate(header)],
            replace(raw, files=files),
        )
        for header, files in groups.items()
    ]


def read_header(file: Path, *, setting: str, sep: str) -> tuple[str, ...]:
    """The names of a CSV file's columns, from its first line."""
    try:
        with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as stream:
            lines = codecs.iterdecode(stream, "utf-8-sig", errors="replace")
            names = next(csv.reader(lines, delimiter=sep), [])
    except (csv.Error, zlib.error, EOFError, OSError) as error:
        raise ValueError(
            f"{file}: found no line of column names ({error}); correct the file or {setting}.path"
        ) from error
    return tuple(name.strip() for name in names)


def likely_separator(file: Path, *, guess: str = "") -> str:
    """The guess, where it parts a CSV file's first line; or what parts it into most words."""
    try:
        with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as stream:
            line = stream.readline().decode("utf-8-sig", errors="replace")
        words = {sep: len(next(csv.reader([line], delimiter=sep), [])) for sep in SEPARATORS}
    except (csv.Error, zlib.error, EOFError, OSError):
        words = dict.fromkeys(SEPARATORS, 1)  # whoever reads the file says what is wrong with it
    most = max(words, key=words.__getitem__)
    return guess if words.get(guess, 0) > 1 or words[most] == words.get(guess) else most
