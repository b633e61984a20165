"""`python -m pretrain mixed_retrieval`: may new and old vectors stand in one index?

After an update of the model a catalogue is encoded anew item by item; until that is done, users
and items of two releases meet. Shapes: B cases, N items, D width.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from torch import Tensor

from data_prep.records import replace_file
from pretrain.case_times import CaseTimes
from pretrain.cases import Cases, Floats, read_cases, read_catalogue
from pretrain.knock_out import refuse_knock_out, without_of
from pretrain.metrics import rank_catalogue
from pretrain.rank_figures import rank_figures, results_table
from pretrain.scorers import open_release, released_users

if TYPE_CHECKING:
    from pretrain.release import Release

ITEMS_FILE = "items.parquet"


@dataclass(frozen=True)
class Space:
    """What one release says of the same users and items."""

    user_BD: Tensor
    item_ND: Tensor


def mixtures(new: Space, old: Space, *, seed: int) -> dict[str, Space]:
    """Users of one release against items of another, by name (users first).

    The cross tests of Shen et al. (CVPR 2020, arXiv 2003.11942), and `new_half`: half of the
    items, drawn by the seed, are encoded anew already and the others not yet.

    Raises:
        ValueError: spaces of two widths.
    """
    if new.item_ND.shape != old.item_ND.shape:
        raise ValueError(
            f"found items of shape {tuple(new.item_ND.shape)} in the new space and "
            f"{tuple(old.item_ND.shape)} in the old one, expected one shape: vectors of two widths "
            "cannot be compared"
        )
    num_items = len(new.item_ND)
    renewed = np.random.default_rng([seed, 4]).permutation(num_items)[: num_items // 2]
    half_ND = old.item_ND.clone()
    half_ND[torch.from_numpy(renewed)] = new.item_ND[torch.from_numpy(renewed)]
    return {
        "new_new": new,
        "old_old": old,
        "new_old": Space(new.user_BD, old.item_ND),
        "old_new": Space(old.user_BD, new.item_ND),
        "new_half": Space(new.user_BD, half_ND),
    }


def mixed_retrieval(
    cases: Path,
    out: Path,
    new_released: Path,
    new_embeddings: Path,
    old_released: Path,
    old_embeddings: Path,
    *,
    users: Path | None = None,
    protocol: str = "mixed",
    k: int = 20,
    chunk: int = 256,
    seed: int = 0,
    note: str = "",
    allow_look_ahead: bool = False,
) -> dict[str, Any]:
    """Rank the catalogue with users and items of two releases, alone and mixed, side by side.

    `new_new` and `old_old` are the releases by themselves, `new_old` new users against old items,
    `old_new` the reverse, `new_half` new users against items of which half are new. Compatible:
    `new_old` is not below `old_old`, so that the update already pays before anything is encoded
    anew. Cases mean what they mean to `evaluate`: `masked`, times and ties are taken as there.

    Args:
        cases: Parquet with user_id, history and targets (lists of item ids), and what else
            `evaluate` reads of cases; one row a question.
        out: JSON to write, of the shape that `evaluate` writes.
        new_released: released checkpoint.
        new_embeddings: folder of python -m pretrain embed with it.
        old_released: the older released checkpoint.
        old_embeddings: folder of embed with that one, on the same dataset.
        users: Parquet with user_id and the user features that the releases read.
        protocol: name of the protocol that the cases follow.
        k: places that count.
        chunk: cases that are scored at a time.
        seed: decides which half of the items is new.
        note: what a reader must know of the figures; kept beside them.
        allow_look_ahead: rank all the same with a release that has seen the time of the cases;
            `out` records it.

    Raises:
        ValueError: embeddings of other releases or of two catalogues, a knock-out, spaces of two
            widths, a release that has seen the time of the cases.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    new_ids, new_vectors = _vectors(new_embeddings)
    old_ids, old_vectors = _vectors(old_embeddings)
    if not new_ids.equals(old_ids):
        raise ValueError(
            f"found {len(new_ids)} items in {new_embeddings} and {len(old_ids)} in "
            f"{old_embeddings}, expected the same; run python -m pretrain embed with both releases "
            "on one dataset"
        )
    asked = read_cases(cases, catalogue=new_ids)
    new_release, old_release = (
        open_release(released, vectors=[embeddings / ITEMS_FILE])
        for released, embeddings in ((new_released, new_embeddings), (old_released, old_embeddings))
    )
    times = CaseTimes.of(
        asked,
        cases=cases,
        newest={"new": new_release.newest_event, "old": old_release.newest_event},
        allowed=allow_look_ahead,
    )

    def space(release: Release, vectors: dict[str, Floats]) -> Space:
        """A release's users, by its own event vectors of their histories, and its items."""
        users_of = released_users(
            release,
            asked,
            event_ND=vectors["event"],
            users=None if users is None else (users, cases),
        )
        starts = range(0, len(asked.users_B), chunk)
        user_BD = torch.cat([users_of(slice(start, start + chunk)) for start in starts])
        return Space(user_BD, torch.from_numpy(vectors["aligned"]))

    new, old = space(new_release, new_vectors), space(old_release, old_vectors)
    systems = {
        name: _figures(one, asked=asked, k=k, chunk=chunk)
        for name, one in mixtures(new, old, seed=seed).items()
    }
    about = {
        "n_cases": len(asked.users_B),
        "n_candidates": len(new_ids),
        "note": note,
        "times": dataclasses.asdict(times),
    }
    result = {protocol: systems, "about": {protocol: about}}
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, json.dumps(result, indent=2).encode())
    Console().print(results_table(protocol, systems, about=about))
    return result


def _vectors(embeddings: Path) -> tuple[pa.Array, dict[str, Floats]]:
    if not (embeddings / "embeddings.json").is_file():
        raise FileNotFoundError(
            f"{embeddings}: found no embeddings.json, expected an embeddings folder; write one "
            "with python -m pretrain embed"
        )
    refuse_knock_out(embeddings, without_of(embeddings))
    return read_catalogue([embeddings / ITEMS_FILE], columns=["aligned", "event"], tables=[])


def _figures(space: Space, *, asked: Cases, k: int, chunk: int) -> dict[str, float]:
    ranks_BT = rank_catalogue(
        space.user_BD,
        space.item_ND,
        target_rows=asked.targets_BT,
        masked_rows=asked.masked_BM,
        chunk=chunk,
    )
    return rank_figures(ranks_BT, users_B=asked.users_B, k=k)
