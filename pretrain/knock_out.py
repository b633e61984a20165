"""Knock-outs: what a release is worth where items lack a modality.

`embed --without` writes such vectors. Only `evaluate` ranks with them, and says so: whatever else
took them would take them for the release's own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pretrain.cases import Floats, columns_of, read_catalogue
from pretrain.system_names import OURS, knocked_out


def without_of(embeddings_dir: Path) -> list[str]:
    """Modalities that the vectors of an embeddings folder lack; none where it says nothing."""
    about = embeddings_dir / "embeddings.json"
    return list(json.loads(about.read_text()).get("without", [])) if about.is_file() else []


def without_of_vectors(vectors: Sequence[Path]) -> list[str]:
    """The same of whichever of these tables has a release's vectors."""
    made = [path.parent for path in vectors if "aligned" in columns_of(path)]
    return without_of(made[0]) if made else []


def refuse_knock_out(where: Path, without: Sequence[str]) -> None:
    """Refuse vectors that lack a modality.

    Raises:
        ValueError: these do.
    """
    if without:
        raise ValueError(
            f"{where}: found a knock-out, vectors without {list(without)}, expected those of all "
            "modalities; run python -m pretrain embed without --without into a folder of its own"
        )


def open_knock_outs(folders: Sequence[Path], *, catalogue: pa.Array) -> dict[str, Path]:
    """Name of the system → its table of vectors.

    Raises:
        ValueError: vectors of all modalities, one knock-out twice, or other items.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        path, without = folder / "items.parquet", without_of(folder)
        if not without or (name := knocked_out(OURS, without)) in found:
            raise ValueError(
                f"knock_outs: found {folder} without {without or 'nothing'}, expected folders of "
                "python -m pretrain embed --without, each without something else"
            )
        if not read_catalogue([path], columns=[], tables=[])[0].equals(catalogue):
            raise ValueError(
                f"knock_outs: found other items in {path} than in vectors, expected the same; run "
                "python -m pretrain embed --without on the same dataset"
            )
        found[name] = path
    return found


def knocked_out_vectors(path: Path) -> dict[str, Floats]:
    """`aligned` and `event` [N, D] of a table, in the order of its item ids."""
    return read_catalogue([path], columns=["aligned", "event"], tables=[])[1]
