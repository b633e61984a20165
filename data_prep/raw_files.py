"""Which files a raw table lies in, of which kind they are, and what their folders' names say."""

import glob
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from data_prep.settings import expand_path

KINDS = {"parquet": "parquet", "csv": "csv", "tsv": "tsv", "json": "json", "jsonl": "jsonl"}
KINDS |= {"ndjson": "jsonl", "pq": "parquet"}
"""Suffix, without a final .gz, to the kind of file."""
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class RawFiles:
    """The files of one raw table."""

    files: list[Path]
    """In order of name."""
    kind: str
    """parquet, csv, tsv, json or jsonl."""
    setting: str
    """Key of the settings that names them: interactions, items, users, impressions."""
    shown: str
    """What to call them in an error."""
    folder: Path | None
    """The folder below which they lie, where the setting names a folder."""

    def partitions(self) -> dict[str, bool]:
        """Columns that the `key=value` parts of the folders' names make; true: integers."""
        if self.folder is None:
            return {}
        rows = [_parts(file.relative_to(self.folder)) for file in self.files]
        for row, file in zip(rows, self.files, strict=True):
            if row.keys() != rows[0].keys():
                raise ValueError(
                    f"{file}: found the partition columns {list(row) or 'none'}, expected "
                    f"{list(rows[0]) or 'none'} as in {self.files[0]}; correct the folder"
                )
        return {
            name: all(_is_integer(row[name]) for row in rows if row[name] != HIVE_NULL)
            for name in rows[0]
        }


def find_files(path: str, *, setting: str) -> RawFiles:
    """The files a file's name, a folder or a pattern stands for; all must be of one kind.

    A folder stands for every file below it, but for those whose name, or whose folder's name,
    begins with `_` or `.`, as Spark leaves them.
    """
    expanded = expand_path(path, setting=f"{setting}.path")
    folder = expanded if expanded.is_dir() else None
    if folder is not None:
        found = [file for file in folder.rglob("*") if file.is_file() and not _hidden(file, folder)]
    else:
        found = [Path(name) for name in glob.glob(str(expanded), recursive=True)]  # noqa: PTH207 (absolute patterns)
    if not found:
        what = "a folder without files" if folder is not None else "no such file"
        raise FileNotFoundError(
            f"{expanded}: found {what}, expected {setting}; correct {setting}.path"
        )
    files = sorted(found)
    suffixes = sorted({_suffix(file) for file in files})
    shown = str(files[0]) if len(files) == 1 else f"{path} ({len(files)} files)"
    kinds = {KINDS.get(suffix) for suffix in suffixes}
    if kinds - {None} != kinds or len(kinds) > 1:
        raise ValueError(
            f"{shown}: found the suffix {' and '.join(map(repr, suffixes))}, expected one of "
            f"{', '.join(KINDS)}; correct {setting}.path"
        )
    return RawFiles(files, str(kinds.pop()), setting, shown, folder)


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(("_", ".")) for part in file.relative_to(folder).parts)


def _suffix(file: Path) -> str:
    return file.name.removesuffix(".gz").rpartition(".")[2].lower()


def _parts(file: Path) -> dict[str, str]:
    pairs = [part.split("=", 1) for part in file.parent.parts if "=" in part]
    return {unquote(name): unquote(value) for name, value in pairs}


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) <= 18
