"""Slices of the catalogue, and bootstrap intervals, against counts by hand and closed forms."""

import numpy as np
import torch

from pretrain.intervals import bootstrap_interval
from pretrain.metrics import recall_at_k
from pretrain.slices import missing_slices, popularity_slices, ranks_within


def test_the_tail_holds_at_most_a_fifth_of_the_choices() -> None:
    # 20 choices: items of 1 and 1 hold 2, those of 2 would bring it to 6 > 4.
    found = popularity_slices(np.array([0, 1, 2, 14, 1, 2]))
    assert found["cold"].tolist() == [True] + 5 * [False]
    assert found["warm"].tolist() == [False] + 5 * [True]
    assert found["tail"].tolist() == [False, True, False, False, True, False]


def test_equally_often_chosen_items_are_in_the_tail_together_or_not_at_all() -> None:
    assert not popularity_slices(np.full(10, 3))["tail"].any()


def test_only_modalities_that_are_missing_somewhere_make_a_slice() -> None:
    found = missing_slices({"image": np.array([True, False]), "text": np.array([True, True])})
    assert list(found) == ["without_image"]
    assert found["without_image"].tolist() == [False, True]


def test_a_slice_counts_its_own_targets_and_leaves_other_cases_out() -> None:
    targets = torch.tensor([[0, 1], [2, -1]])
    ranks = torch.tensor([[3, 50], [0, -1]])
    inside = ranks_within(ranks, targets_BT=targets, slice_N=torch.tensor([True, True, False]))
    recall = recall_at_k(inside, k=20)
    assert recall[0] == 0.5
    assert recall[1].isnan()


def test_the_interval_is_that_of_the_normal_law_for_many_users() -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)) + 5
    low, high = bootstrap_interval(values)
    half = 1.96 * float(values.std()) / 4000**0.5
    assert abs(low - (float(values.mean()) - half)) < 0.1 * half
    assert abs(high - (float(values.mean()) + half)) < 0.1 * half


def test_one_user_gives_one_point() -> None:
    assert bootstrap_interval(torch.tensor([0.25])) == (0.25, 0.25)
