"""The figures of one system under a protocol, and those of several side by side.

Shapes: B cases, T targets a case.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table
from torch import Tensor

from pretrain.intervals import bootstrap_interval
from pretrain.metrics import (
    mean_over_users,
    ndcg_at_k,
    recall_at_k,
    reciprocal_rank,
    user_means,
)


def rank_figures(ranks_BT: Tensor, *, users_B: Tensor, k: int) -> dict[str, float]:
    """Means over users; `se`, `low` and `high` (a 95 % bootstrap interval) are those of recall."""
    recall_B = recall_at_k(ranks_BT, k=k)
    recall = mean_over_users(recall_B, users_B=users_B)
    low, high = bootstrap_interval(user_means(recall_B, users_B=users_B))
    return {
        f"recall@{k}": recall.mean,
        f"ndcg@{k}": mean_over_users(ndcg_at_k(ranks_BT, k=k), users_B=users_B).mean,
        "mrr": mean_over_users(reciprocal_rank(ranks_BT), users_B=users_B).mean,
        "se": recall.se,
        "low": low,
        "high": high,
        "n_users": recall.num_users,
    }


def results_table(
    protocol: str, systems: dict[str, dict[str, float]], *, about: dict[str, Any]
) -> Table:
    """Lay the systems out side by side for a terminal."""
    title = f"{protocol}: {about['n_cases']:,} cases, {about['n_candidates']:,} candidates"
    table = Table(title=title, caption=about["note"] or None)
    table.add_column("system", min_width=max(map(len, systems)))
    for column in next(iter(systems.values())):
        table.add_column(column, justify="right")
    for name, values in systems.items():
        shown = (f"{v:,}" if isinstance(v, int) else f"{v:.4f}" for v in values.values())
        table.add_row(name, *shown)
    return table
