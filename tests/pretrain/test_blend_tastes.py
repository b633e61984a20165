"""What a history says of a user's taste, against the definitions."""

import math

import torch

from pretrain.blend_tastes import (
    BIRTH_FLOOR,
    BIRTH_KERNEL_YEARS,
    birth_affinity,
    log_odds_of_new,
    popularity_gap,
)

NEW_N = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0])
HISTORIES = torch.tensor([[0, 1, 3], [2, -1, -1], [-1, -1, -1]])


def test_the_odds_of_new_count_the_history_alone() -> None:
    found = log_odds_of_new(HISTORIES, new_N=NEW_N)
    expected = [math.log(1.5 / 2.5), math.log(0.5 / 1.5), 0.0]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_padding_is_no_item() -> None:
    """-1 would be the last item, which is new."""
    longer = torch.cat([HISTORIES, torch.full((3, 4), -1)], dim=1)
    born_N = torch.tensor([1990.0, 2000.0, 2010.0, 2010.0, 2011.0]).double()
    log_count_N = torch.arange(5.0)
    for signal in (
        lambda history_BL: log_odds_of_new(history_BL, new_N=NEW_N),
        lambda history_BL: popularity_gap(history_BL, log_count_N=log_count_N),
        lambda history_BL: birth_affinity(history_BL, born_N=born_N),
    ):
        assert torch.equal(signal(longer), signal(HISTORIES))


def test_the_popularity_gap_is_squared_and_zero_without_a_history() -> None:
    log_count_N = torch.tensor([1.0, 3.0, 5.0, 0.0, 2.0])
    found = popularity_gap(torch.tensor([[0, 2], [-1, -1]]), log_count_N=log_count_N)
    assert found.tolist() == [[4, 0, 4, 9, 1], [0, 0, 0, 0, 0]]


def test_births_near_those_of_the_history_are_likelier() -> None:
    born_N = torch.tensor([1990.0, 1999.0, 2001.5, 2020.0, math.nan]).double()
    found = birth_affinity(torch.tensor([[1, 2, 4], [4, -1, -1]]), born_N=born_N)

    def density(year: int) -> float:
        kernel = sum(math.exp(-abs(year - other) / BIRTH_KERNEL_YEARS) for other in (1999, 2001))
        return math.log(kernel / 2 + BIRTH_FLOOR)

    values = torch.tensor([density(year) for year in (1990, 1999, 2001, 2020)])
    torch.testing.assert_close(found[0, :4], values - values.mean())
    assert found[0, 4] == 0
    assert not found[1].any(), "a history whose births are unknown"
    assert not birth_affinity(HISTORIES, born_N=torch.full((5,), math.nan)).any()
