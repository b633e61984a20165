"""Metrics against numbers worked out by hand and against a slow twin that sorts lists."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pretrain.metrics import (
    mean_over_users,
    ndcg_at_k,
    rank_catalogue,
    rank_scored,
    ranks_of_targets,
    recall_at_k,
    reciprocal_rank,
    target_ranks,
)

NONE = torch.full((1, 1), -1)


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def slow_ranks(scores: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
    """Sort each list as an enemy would: ties put other items first, then targets in order."""
    out = torch.full_like(targets, -1)
    for case, values in enumerate(scores.tolist()):
        wanted = [t for t in targets[case].tolist() if t >= 0]
        hidden = {m for m in masked[case].tolist() if m >= 0}
        shown = [i for i in range(len(values)) if i not in hidden]
        shown.sort(key=lambda i: (-values[i], wanted.index(i) + 1 if i in wanted else 0))
        for place, target in enumerate(targets[case].tolist()):
            if target >= 0:
                out[case, place] = len(values) if target in hidden else shown.index(target)
    return out


def random_cases(seed: int, *, num_levels: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(num_levels, (40, 25), generator=generator).float()
    order = torch.stack([torch.randperm(25, generator=generator) for _ in range(40)])
    targets, masked = order[:, :4].clone(), order[:, 3:12].clone()  # column 3 is masked and wanted
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = -1
    masked[torch.rand(masked.shape, generator=generator) < 0.3] = -1
    return scores, targets, masked


def test_the_best_item_has_rank_zero() -> None:
    assert ranks_of_targets(row(0.1, 0.9, 0.5), row(1, 2), NONE).tolist() == [[0, 1]]


def test_masked_items_do_not_stand_above_a_target() -> None:
    assert ranks_of_targets(row(9, 8, 7, 6), row(3), row(0, 2, -1)).tolist() == [[1]]


def test_an_item_masked_twice_is_masked_once() -> None:
    assert ranks_of_targets(row(9, 8, 7), row(2), row(0, 0)).tolist() == [[1]]


def test_a_tied_item_stands_above_the_target() -> None:
    assert ranks_of_targets(row(1, 1, 1, 0), row(0), NONE).tolist() == [[2]]
    assert ranks_of_targets(torch.zeros(1, 50), row(7), NONE).tolist() == [[49]]


def test_tied_targets_take_consecutive_ranks() -> None:
    assert ranks_of_targets(row(1, 1, 1, 0), row(2, 0), NONE).tolist() == [[1, 2]]


def test_a_masked_target_is_never_found() -> None:
    ranks = ranks_of_targets(row(3, 2, 1), row(0, 1), row(0))
    assert ranks.tolist() == [[3, 0]]
    assert recall_at_k(ranks, k=3).tolist() == [0.5]


@pytest.mark.parametrize("num_levels", [3, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_equal_those_of_a_sorted_list(seed: int, num_levels: int) -> None:
    scores, targets, masked = random_cases(seed, num_levels=num_levels)
    assert torch.equal(
        ranks_of_targets(scores, targets, masked), slow_ranks(scores, targets, masked)
    )


def test_nan_is_an_error() -> None:
    with pytest.raises(ValueError, match="found NaN in 1 cases"):
        ranks_of_targets(row(1, math.nan), row(0), NONE)


@pytest.mark.parametrize("bad", [3, -2])
def test_a_row_outside_the_catalogue_is_an_error(bad: int) -> None:
    with pytest.raises(ValueError, match="targets: found rows"):
        ranks_of_targets(row(1, 2, 3), row(bad), NONE)
    with pytest.raises(ValueError, match="masked: found rows"):
        ranks_of_targets(row(1, 2, 3), row(0), row(bad))


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_do_not_change_the_ranks(chunk: int) -> None:
    scores, targets, masked = random_cases(0, num_levels=5)
    ranks = rank_catalogue(
        scores, torch.eye(25), target_rows=targets, masked_rows=masked, chunk=chunk
    )
    assert torch.equal(ranks, slow_ranks(scores, targets, masked))


def test_no_more_than_a_chunk_is_scored_at_a_time() -> None:
    seen = []

    def scores_of(cases: slice) -> Tensor:
        block = torch.zeros(40, 25)[cases]
        seen.append(len(block))
        return block

    rows = torch.zeros(40, 1, dtype=torch.int64)
    rank_scored(
        scores_of, num_items=25, target_rows=rows, masked_rows=torch.full_like(rows, -1), chunk=16
    )
    assert seen == [16, 16, 8]


def test_ranking_candidates_equals_masking_all_others() -> None:
    scores, targets, masked = random_cases(1, num_levels=1000)
    candidates = torch.tensor([20, 3, 7, 11, 15, 0, 24])
    outside = torch.tensor([i for i in range(25) if i not in candidates])
    targets = torch.where(torch.isin(targets, candidates), targets, -1)
    ranks = rank_catalogue(
        scores, torch.eye(25), target_rows=targets, masked_rows=masked, candidates=candidates
    )
    hidden = torch.cat([masked, outside.expand(len(scores), -1)], dim=1)
    expected = slow_ranks(scores, targets, hidden)
    # A masked target ranks behind all columns, and there are fewer of them.
    assert torch.equal(ranks, expected.masked_fill(expected == 25, len(candidates)))


def test_a_target_outside_the_candidates_is_an_error() -> None:
    with pytest.raises(ValueError, match="outside the candidates"):
        rank_catalogue(
            torch.ones(1, 3),
            torch.eye(3),
            target_rows=row(0, 2),
            masked_rows=NONE,
            candidates=torch.tensor([0, 1]),
        )


def test_repeated_candidates_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 rows, 2 of them distinct"):
        rank_catalogue(
            torch.ones(1, 3),
            torch.eye(3),
            target_rows=row(0),
            masked_rows=NONE,
            candidates=torch.tensor([0, 1, 1]),
        )


def test_target_ranks_is_the_catalogue_ranking_of_one_target() -> None:
    scores, targets, masked = random_cases(2, num_levels=5)
    target = torch.randint(25, (40,), generator=torch.Generator().manual_seed(0))
    ranks = target_ranks(scores, torch.eye(25), target, masked, chunk=9)
    assert ranks.shape == (40,)
    assert torch.equal(ranks, slow_ranks(scores, target[:, None], masked)[:, 0])
    with pytest.raises(ValueError, match="negative rows"):
        target_ranks(scores, torch.eye(25), targets[:, 0].clamp(max=-1), masked)


def test_no_cases_give_no_ranks() -> None:
    empty = torch.zeros(0, 1, dtype=torch.int64)
    ranks = rank_catalogue(torch.zeros(0, 3), torch.eye(3), target_rows=empty, masked_rows=empty)
    assert ranks.shape == (0, 1)


def test_recall_divides_by_all_targets_of_the_case() -> None:
    ranks = torch.tensor([[0, 4, 19, 20, -1], [20, -1, -1, -1, -1]])
    assert recall_at_k(ranks, k=20).tolist() == [0.75, 0.0]
    assert recall_at_k(ranks, k=1).tolist() == [0.25, 0.0]


def test_ndcg_of_hits_at_places_one_and_three() -> None:
    # DCG = 1 + 1/2, ideal = 1 + 1/log2(3) for two targets.
    ndcg = ndcg_at_k(torch.tensor([[0, 2, -1]]), k=10)
    assert ndcg.item() == pytest.approx(1.5 / (1 + 1 / math.log2(3)))


def test_ndcg_is_one_when_all_places_are_hits_although_targets_outnumber_them() -> None:
    assert ndcg_at_k(torch.tensor([[0, 1, 7]]), k=2).item() == pytest.approx(1.0)


def test_reciprocal_rank_takes_the_best_target() -> None:
    assert reciprocal_rank(torch.tensor([[9, 3, -1]])).tolist() == [0.25]


def test_k_beyond_the_candidates_finds_everything() -> None:
    ranks = ranks_of_targets(row(3, 2, 1), row(1, 2), NONE)
    assert recall_at_k(ranks, k=1000).tolist() == [1.0]
    assert 0 < ndcg_at_k(ranks, k=1000).item() < 1


def test_k_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="k: found 0"):
        recall_at_k(NONE, k=0)


@pytest.mark.parametrize(
    "metric", [lambda r: recall_at_k(r, k=5), lambda r: ndcg_at_k(r, k=5), reciprocal_rank]
)
def test_a_case_without_a_target_is_left_out_and_counted(
    metric: Callable[[Tensor], Tensor],
) -> None:
    result = mean_over_users(metric(torch.tensor([[0, -1], [-1, -1], [9, -1]])))
    assert (result.num_users, result.num_left_out) == (2, 1)
    assert 0.5 <= result.mean < 0.56


def test_users_weigh_the_same_however_many_cases_they_have() -> None:
    result = mean_over_users(torch.tensor([1.0, 0.0, 0.0, 1.0]), users_B=torch.tensor([7, 7, 7, 2]))
    assert result.mean == pytest.approx((1 / 3 + 1) / 2)
    assert result.num_users == 2
    assert result.se == pytest.approx(1 / 3)  # half the distance of two values


def test_a_metric_without_any_case_is_an_error() -> None:
    with pytest.raises(ValueError, match="no case with a target"):
        mean_over_users(recall_at_k(NONE, k=5))
