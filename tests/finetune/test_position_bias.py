import pytest
import torch
import torch.nn.functional as F

from finetune.position_bias import PositionTower, logit_of_product


def test_the_product_of_two_chances_is_finite_at_both_ends() -> None:
    a, b = torch.tensor([0.3, -2.0, 40.0, -200.0, 200.0]), torch.tensor([1.0, 4.0, 40.0, 5.0, 3.0])
    found = logit_of_product(a, b)
    exact = torch.sigmoid(a.double()) * torch.sigmoid(b.double())
    torch.testing.assert_close(torch.sigmoid(found.double()), exact, atol=1e-7, rtol=1e-5)
    assert torch.isfinite(found).all()
    assert found[2].item() == pytest.approx(40 - torch.tensor(2.0).log().item(), abs=1e-4)


@pytest.mark.parametrize("mode", ["add", "seen"])
def test_a_model_serves_without_a_place_or_in_a_fixed_one(mode: str) -> None:
    tower = PositionTower(3, mode=mode).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        tower.place_P.copy_(torch.tensor([0.5, 0.0, -1.0]))
    logit_B = torch.tensor([0.2, -0.3, 1.4])
    assert tower(logit_B, None) is logit_B
    fixed_B = tower(logit_B, torch.full((3,), 2))
    assert fixed_B.argsort().tolist() == logit_B.argsort().tolist()
    assert (fixed_B < logit_B).all()


def test_an_untrained_adding_tower_changes_nothing() -> None:
    logit_B = torch.randn(5)
    tower = PositionTower(2)
    torch.testing.assert_close(tower(logit_B, torch.tensor([0, 1, 0, 1, 1])), logit_B)


def test_places_are_hidden_at_times_while_training_only() -> None:
    torch.manual_seed(0)
    tower = PositionTower(1, dropout=0.25)
    torch.nn.init.constant_(tower.place_P, 2.0)
    logit_B, place_B = torch.zeros(4000), torch.zeros(4000, dtype=torch.long)
    hidden = (tower.train()(logit_B, place_B) == 0).float().mean().item()
    assert hidden == pytest.approx(0.25, abs=0.03)
    assert (tower.eval()(logit_B, place_B) == 2).all()


def confounded(*, seen_by_place: torch.Tensor, seed: int) -> tuple[torch.Tensor, ...]:
    """Clicks on two items where the better one is mostly shown first, the worse one below."""
    generator = torch.Generator().manual_seed(seed)
    liked = torch.tensor([0.5, 0.35])
    item_N = torch.randint(2, (20_000,), generator=generator)
    swapped_N = torch.rand(20_000, generator=generator) < 0.15
    place_N = torch.where(swapped_N, 1 - item_N, item_N)
    chance_N = liked[item_N] * seen_by_place[place_N]
    return item_N, place_N, (torch.rand(20_000, generator=generator) < chance_N).float()


def fit(item_N: torch.Tensor, place_N: torch.Tensor | None, label_N: torch.Tensor) -> torch.Tensor:
    """What two items are worth to a model with one weight each, without a place."""
    tower = PositionTower(2, mode="seen", first_is_seen=True)
    item_I = torch.nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.Adam([item_I, *tower.parameters()], lr=0.05)
    for _ in range(250):
        loss = F.binary_cross_entropy_with_logits(tower(item_I[item_N], place_N), label_N)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if place_N is not None:
        assert tower.seen_P().tolist() == pytest.approx([1.0, 0.4], abs=0.03)
    return torch.sigmoid(item_I.detach())


def test_the_tower_gives_back_what_position_hid() -> None:
    item_N, place_N, label_N = confounded(seen_by_place=torch.tensor([1.0, 0.4]), seed=0)
    told = fit(item_N, place_N, label_N)
    untold = fit(item_N, None, label_N)
    assert told.tolist() == pytest.approx([0.5, 0.35], abs=0.03)
    assert untold[1] < 0.2  # the worse item looks far worse than it is


def test_the_odds_of_a_place_are_learnt_beside_the_items() -> None:
    generator = torch.Generator().manual_seed(1)
    item_N = torch.randint(2, (20_000,), generator=generator)
    place_N = torch.where(torch.rand(20_000, generator=generator) < 0.2, 1 - item_N, item_N)
    truth_I, truth_P = torch.tensor([0.5, -0.5]), torch.tensor([0.6, -0.6])
    chance_N = torch.sigmoid(truth_I[item_N] + truth_P[place_N])
    label_N = (torch.rand(20_000, generator=generator) < chance_N).float()
    tower = PositionTower(2, dropout=0.0)
    item_I = torch.nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.Adam([item_I, *tower.parameters()], lr=0.05)
    for _ in range(200):
        loss = F.binary_cross_entropy_with_logits(tower(item_I[item_N], place_N), label_N)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    place_P = tower.place_P.detach()
    assert (place_P[0] - place_P[1]).item() == pytest.approx(1.2, abs=0.1)
    assert (item_I[0] - item_I[1]).item() == pytest.approx(1.0, abs=0.1)


def test_bad_input_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="0 places"):
        PositionTower(0)
    with pytest.raises(ValueError, match="dropout"):
        PositionTower(2, dropout=1.0)
    for place_B in (torch.tensor([0, 2]), torch.tensor([0, -1]), torch.tensor([0])):
        with pytest.raises(ValueError, match="place_B"):
            PositionTower(2)(torch.zeros(2), place_B)
    with pytest.raises(ValueError, match="seen_P"):
        PositionTower(2).seen_P()
