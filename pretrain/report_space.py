"""The map of the space in `report`: where the items of an embeddings folder are.

Shapes: I items, W width of their vectors.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.dataset import Dataset
from data_prep.figures import BLUE, RUST
from data_prep.html_page import Html, figure, join, section
from pretrain.cases import columns_of, read_catalogue
from pretrain.item_map import Directions, item_map, principal_directions, spectrum_figure

_ITEMS_FILE, _ABOUT_FILE = "items.parquet", "embeddings.json"
_WARM, _COLD = "warm", "cold (no positive event in training)"
MISSING, UNKNOWN = "missing", "not in the dataset"


@dataclasses.dataclass(frozen=True)
class Space:
    """The item vectors of an embeddings folder."""

    item_ids: pa.Array
    """Ascending."""

    directions: dict[str, Directions]
    """`raw` and `aligned` (and `event`), each of all items."""

    about: dict[str, Any]
    """embeddings.json."""


def read_space(embeddings_dir: Path) -> Space:
    """Read an embeddings folder.

    Raises:
        FileNotFoundError: it is none.
        ValueError: no vectors, or fewer than three items.
    """
    for name in (_ITEMS_FILE, _ABOUT_FILE):
        if not (embeddings_dir / name).is_file():
            raise FileNotFoundError(
                f"{embeddings_dir}: found no {name}, expected an embeddings folder; "
                "write one with python -m pretrain embed"
            )
    path = embeddings_dir / _ITEMS_FILE
    present = columns_of(path)
    columns: list[str] = [name for name in ("raw", "aligned", "event") if name in present]
    if "aligned" not in columns:
        raise ValueError(
            f"{path}: found the columns {present}, expected `aligned` among them; "
            "write it with python -m pretrain embed"
        )
    item_ids, vector_IWs = read_catalogue([path], columns=columns, tables=[])
    if len(item_ids) < 3:
        raise ValueError(f"{path}: found {len(item_ids)} items, expected at least 3 to map")
    return Space(
        item_ids=item_ids,
        directions={name: principal_directions(vector_IWs[name]) for name in columns},
        about=dict(json.loads((embeddings_dir / _ABOUT_FILE).read_text())),
    )


def space_sections(
    space: Space, dataset: Dataset | None, *, feature: str | None, most_items: int, seed: int
) -> list[Html]:
    """The map by feature and by warm and cold, and the spectrum.

    Raises:
        ValueError: no such feature, or one that has no names; or none of the items is known.
    """
    num_items = len(space.item_ids)
    rows = np.sort(np.random.default_rng(seed).permutation(num_items)[:most_items])
    mapped = {
        name: dataclasses.replace(one, place_I2=one.place_I2[rows])
        for name, one in space.directions.items()
        if name in ("raw", "aligned")
    }
    which = "all" if len(rows) == num_items else f"{len(rows):,} of the"
    text = (
        f"The two main directions of the item vectors (principal components of all items; {which} "
        f"{num_items:,} items are drawn). “raw”: off-the-shelf content before pre-training; "
        "“aligned”: in the shared space. What lies apart in the plane is apart, but what lies "
        "together may be apart in the other directions."
    )
    parts = []
    if dataset is None:
        parts.append(figure(item_map(mapped, ["item"] * len(rows))))
        parts.append(_paragraph("Without dataset_dir the items have no colours."))
    else:
        place_I = _dataset_rows(space, dataset)
        name = _feature(dataset, feature)
        if name is not None:
            groups = _groups(dataset, name, place_I[rows])
            parts.append(_paragraph(f"Coloured by the items' {name}, the first where several."))
            parts.append(figure(item_map(mapped, groups)))
        cold = _cold(dataset, place_I[rows])
        parts.append(
            _paragraph(
                "Warm and cold items. Cold ones that lie apart from warm ones in “aligned” but not "
                "in “raw” were put there by training."
            )
        )
        parts.append(figure(item_map(mapped, cold, colours={_WARM: BLUE, _COLD: RUST})))
    effective = (
        "Effective rank: the exponential of the entropy of the singular values' shares; 1 where "
        "all vectors point one way, the width where all directions are used alike."
    )
    spectrum = section("Spectrum", effective, figure(spectrum_figure(space.directions)))
    return [section("Map of the items", text, join(parts)), spectrum]


def space_sentence(space: Space) -> str:
    """How much of the width the items use."""
    one = space.directions["aligned"]
    without = space.about.get("without", [])
    part = f" without {' and '.join(without)}" if without else ""
    return (
        f"The aligned vectors{part} of {len(space.item_ids):,} items have an effective rank of "
        f"{one.effective_rank:.0f} of {len(one.variance_W)}; the map's two directions hold "
        f"{one.in_plane:.0%} of their variance."
    )


def _paragraph(text: str) -> Html:
    return join([Html("<p>"), text, Html("</p>")])


def _dataset_rows(space: Space, dataset: Dataset) -> NDArray[np.int64]:
    """[I] the item's row in the dataset, -1 where it has none."""
    known = dataset.items["item_id"].combine_chunks()
    ids = space.item_ids
    if known.type != ids.type:
        known, ids = known.cast(pa.string()), ids.cast(pa.string())
    rows = pc.fill_null(pc.index_in(ids, value_set=known), -1).to_numpy(zero_copy_only=False)
    if (rows < 0).all():
        raise ValueError(
            f"{dataset.dir}: found none of the {len(ids)} items of the embeddings, the first is "
            f"{ids[0].as_py()!r}; give the dataset that they are of"
        )
    return np.asarray(rows, np.int64)


def _feature(dataset: Dataset, feature: str | None) -> str | None:
    """The feature asked for, or the first that has names."""
    kinds = dataset.manifest.features.item
    usable = [name for name, kind in kinds.items() if kind in ("categorical", "multi")]
    if feature is not None and feature not in usable:
        raise ValueError(
            f"map_feature: found {feature!r}, expected one of the dataset's categorical features "
            f"{usable}"
        )
    return feature or next(iter(usable), None)


def _groups(dataset: Dataset, name: str, place_I: NDArray[np.int64]) -> list[str]:
    values = dataset.items[name].to_pylist()
    groups = []
    for place in place_I:
        value = values[place] if place >= 0 else UNKNOWN
        if isinstance(value, list):
            value = value[0] if value else None
        groups.append(MISSING if value is None else str(value))
    return groups


def _cold(dataset: Dataset, place_I: NDArray[np.int64]) -> list[str]:
    train = dataset.events().positives().before(dataset.manifest.cutoffs.valid_start)
    count_N = np.bincount(train.item_rows, minlength=dataset.num_items)
    return [UNKNOWN if place < 0 else _WARM if count_N[place] > 0 else _COLD for place in place_I]
