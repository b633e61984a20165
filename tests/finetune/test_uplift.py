import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finetune.uplift import Arms, TwoHeads, factual_loss
from finetune.uplift_curves import auuc, qini_coefficient, qini_curve, uplift_curve

CONTROL_B, TREATED_B = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, 2.0, 3.0, 4.0])
ARM_B, OUTCOME_B = torch.tensor([1, 0, 0, 0]), torch.tensor([1.0, 0.0, 1.0, 0.0])


def test_a_person_trains_the_head_of_their_arm_with_half_the_weight_for_each_arm() -> None:
    found = factual_loss(
        Arms(CONTROL_B, TREATED_B),
        OUTCOME_B,
        treated_B=ARM_B,
        treated_share=0.25,
        kind="value",
    )
    in_control = ((0.2 - 0) ** 2 + (0.3 - 1) ** 2 + (0.4 - 0) ** 2) / 3
    assert found.item() == pytest.approx(((1.0 - 1.0) ** 2 + in_control) / 2)


def test_a_binary_outcome_is_a_log_loss_and_an_uplift_of_probabilities() -> None:
    found = factual_loss(
        Arms(CONTROL_B, TREATED_B), OUTCOME_B, treated_B=ARM_B, treated_share=0.5, kind="binary"
    )
    logit_B = torch.where(ARM_B > 0, TREATED_B, CONTROL_B)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(logit_B, OUTCOME_B))
    model = TwoHeads(3, shared=(), head=())
    x_BX = torch.randn(5, 3)
    arms = model(x_BX)
    expected_B = torch.sigmoid(arms.treated_B) - torch.sigmoid(arms.control_B)
    torch.testing.assert_close(model.uplift(x_BX), expected_B)


def test_a_batch_of_one_arm_leaves_the_other_head_alone() -> None:
    model = TwoHeads(2, shared=(4,), head=(3,))
    loss = factual_loss(
        model(torch.randn(6, 2)),
        torch.ones(6),
        treated_B=torch.ones(6),
        treated_share=0.5,
        kind="binary",
    )
    loss.backward()
    assert all((p.grad == 0).all() for p in model.control.parameters() if p.grad is not None)
    assert any(p.grad is not None and (p.grad != 0).any() for p in model.treated.parameters())


@pytest.mark.parametrize("shared", [(), (16,)])
def test_two_heads_find_an_effect_that_depends_on_a_feature(shared: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x_NX = torch.randn(4000, 2)
    treated_N = (torch.rand(4000) < 0.3).long()
    effect_N = 1 + x_NX[:, 0]
    outcome_N = 2 * x_NX[:, 1] + treated_N * effect_N + 0.5 * torch.randn(4000)
    model = TwoHeads(2, shared=shared, head=(16,), outcome="value")
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(200):
        loss = factual_loss(
            model(x_NX), outcome_N, treated_B=treated_N, treated_share=0.3, kind="value"
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    uplift_N = model.uplift(x_NX).detach()
    assert (uplift_N - effect_N).square().mean().item() < 0.1
    truth = {"treated_N": treated_N.numpy()}
    scores = uplift_N.double().numpy()
    found = qini_coefficient(outcome_N.double().numpy(), score_N=scores, **truth)
    best = qini_coefficient(outcome_N.double().numpy(), score_N=effect_N.double().numpy(), **truth)
    assert found > 0.9 * best > 0.1


def test_the_losses_refuse_one_treatment_only_and_bad_numbers() -> None:
    arms = Arms(CONTROL_B, TREATED_B)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="two arms"):
            factual_loss(arms, OUTCOME_B, treated_B=ARM_B, treated_share=share, kind="value")
    with pytest.raises(ValueError, match="expected 0 and 1"):
        factual_loss(arms, OUTCOME_B, treated_B=ARM_B + 1, treated_share=0.5, kind="value")
    with pytest.raises(ValueError, match="outcome_B"):
        factual_loss(
            arms, OUTCOME_B * float("nan"), treated_B=ARM_B, treated_share=0.5, kind="value"
        )


def test_the_curves_are_their_formulas() -> None:
    # In order of score: treated 1, control 0, treated 0, control 1.
    outcome_N = np.array([1.0, 1.0, 0.0, 0.0])
    treated_N = np.array([1, 0, 0, 1])
    score_N = np.array([0.9, 0.1, 0.7, 0.5])
    uplift = uplift_curve(outcome_N, treated_N=treated_N, score_N=score_N)
    np.testing.assert_allclose(uplift.share_K, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(
        uplift.gain_K, [0, 1 * 0.25, (1 - 0) * 0.5, (1 / 2 - 0) * 0.75, (1 / 2 - 1 / 2) * 1]
    )
    qini = qini_curve(outcome_N, treated_N=treated_N, score_N=score_N)
    np.testing.assert_allclose(qini.gain_K, np.array([0, 1, 1, 1, 1 - 1]) / 2)
    area = 0.25 * (0.25 / 2 + (0.25 + 0.5) / 2 + (0.5 + 0.375) / 2 + 0.375 / 2)
    assert auuc(outcome_N, treated_N=treated_N, score_N=score_N) == pytest.approx(area)
    assert qini_coefficient(outcome_N, treated_N=treated_N, score_N=score_N) == pytest.approx(
        0.25 * (0.25 + 0.5 + 0.5 + 0.25)
    )


def randomised(num_people: int, *, seed: int) -> dict[str, np.ndarray]:
    """A trial whose effect rises evenly from -0.2 to 0.4."""
    rng = np.random.default_rng(seed)
    effect_N = rng.uniform(-0.2, 0.4, size=num_people)
    treated_N = (rng.random(num_people) < 0.3).astype(int)
    outcome_N = (rng.random(num_people) < 0.4 + treated_N * effect_N).astype(np.float64)
    return {"outcome_N": outcome_N, "treated_N": treated_N, "effect_N": effect_N}


def test_both_curves_end_at_the_average_effect() -> None:
    trial = randomised(500, seed=0)
    given = {"treated_N": trial["treated_N"], "score_N": trial["effect_N"]}
    treated = trial["treated_N"] == 1
    effect = trial["outcome_N"][treated].mean() - trial["outcome_N"][~treated].mean()
    for curve in (uplift_curve, qini_curve):
        assert curve(trial["outcome_N"], **given).gain_K[-1] == pytest.approx(effect)


def test_the_areas_of_the_true_order_are_those_of_the_world_that_drew_it() -> None:
    # Treating the best share s gains ∫ (0.4 - 0.6 t) dt = 0.4 s - 0.3 s² a person.
    area = 0.4 / 2 - 0.3 / 3
    trials = [randomised(4000, seed=seed) for seed in range(100)]
    for found, expected in (
        (
            [
                auuc(one["outcome_N"], treated_N=one["treated_N"], score_N=one["effect_N"])
                for one in trials
            ],
            area,
        ),
        (
            [
                qini_coefficient(
                    one["outcome_N"], treated_N=one["treated_N"], score_N=one["effect_N"]
                )
                for one in trials
            ],
            area - 0.1 / 2,
        ),
    ):
        assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / 10)


def test_an_order_by_chance_gains_nothing_and_the_reverse_loses() -> None:
    trial = randomised(20_000, seed=1)
    rng = np.random.default_rng(2)
    given = {"treated_N": trial["treated_N"]}
    chance = qini_coefficient(trial["outcome_N"], score_N=rng.random(20_000), **given)
    reverse = qini_coefficient(trial["outcome_N"], score_N=-trial["effect_N"], **given)
    assert abs(chance) < 0.01
    assert reverse < -0.03


def test_the_tied_are_one_step_whatever_their_order() -> None:
    trial = randomised(400, seed=3)
    score_N = np.round(trial["effect_N"], 1)
    order_N = np.random.default_rng(0).permutation(400)
    values = [
        auuc(trial["outcome_N"][order], treated_N=trial["treated_N"][order], score_N=score_N[order])
        for order in (np.arange(400), order_N)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    flat = np.zeros(400)
    assert qini_coefficient(
        trial["outcome_N"], treated_N=trial["treated_N"], score_N=flat
    ) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("arms", [[1, 1, 1], [0, 0, 0], [0, 1, 2], []])
def test_the_curves_need_both_arms(arms: list[int]) -> None:
    treated_N = np.array(arms, dtype=int)
    with pytest.raises(ValueError, match="treated_N"):
        auuc(np.ones(len(arms)), treated_N=treated_N, score_N=np.ones(len(arms)))


def test_the_curves_refuse_what_is_no_number() -> None:
    arms_N, good_N = np.array([0, 1]), np.ones(2)
    bad_N = np.array([1.0, np.nan])
    with pytest.raises(ValueError, match="outcome_N"):
        auuc(bad_N, treated_N=arms_N, score_N=good_N)
    with pytest.raises(ValueError, match="score_N"):
        qini_coefficient(good_N, treated_N=arms_N, score_N=bad_N)
