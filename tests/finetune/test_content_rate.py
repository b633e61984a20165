"""Click rates by content: against slow twins, and what they are for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_prep.dataset import Dataset
from finetune import content_rate
from finetune.content import open_content
from finetune.content_rate import NOISE, ContentRate
from finetune.data import CtrData
from finetune.metrics import auc
from finetune.settings import FitConfig


def world(num_items: int = 60, width: int = 6, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Item vectors (zero rows: no content, and no item), and impressions whose clicks hang on
    content."""
    generator = torch.Generator().manual_seed(seed)
    item_IW = F.normalize(torch.randn(num_items + 1, width, generator=generator), dim=1)
    item_IW[[4, -1]] = 0
    item_N = torch.randint(0, num_items * 3 // 4, (num_items * 20,), generator=generator).int()
    chance_N = torch.sigmoid(3 * item_IW[item_N.long(), 0])
    label_N = (torch.rand(len(item_N), generator=generator) < chance_N).float()
    return item_IW, item_N, label_N


def slow_fit(
    item_IW: torch.Tensor, item_N: torch.Tensor, label_N: torch.Tensor, *, out: int, share: float
) -> tuple[np.ndarray, float]:
    """Weighted ridge with a free constant on all shown items but `out`, by normal equations."""
    x, items = item_IW.numpy().astype(float), item_N.numpy()
    shown = [i for i in np.unique(items) if x[i].any()]
    count = np.array([(items == i).sum() for i in shown], float)
    rate = np.array([label_N.numpy()[items == i].mean() for i in shown])
    weight = count / (count + NOISE)
    penalty = share / x.shape[1] * weight.sum()
    kept = np.array(shown) != out
    design = np.c_[x[shown], np.ones(len(shown))][kept]
    scaled = design * weight[kept, None]
    solved = np.linalg.solve(
        design.T @ scaled + penalty * np.diag([1.0] * x.shape[1] + [0.0]), scaled.T @ rate[kept]
    )
    return solved[:-1], float(solved[-1])


def test_a_rate_leaves_its_item_out_as_if_refitted_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(content_rate, "_CHUNK_ITEMS", 7)
    item_IW, item_N, label_N = world()
    learnt = ContentRate.learn(item_IW, item_N, label_N)
    assert learnt.left_out_I is not None
    assert learnt.penalty is not None
    weight, constant = slow_fit(item_IW, item_N, label_N, out=-1, share=learnt.penalty)
    whole_I = learnt.of(item_IW)
    np.testing.assert_allclose(whole_I[50], item_IW[50].numpy() @ weight + constant, atol=1e-5)
    for item in (0, 9, 33):
        weight, constant = slow_fit(item_IW, item_N, label_N, out=item, share=learnt.penalty)
        expected = item_IW[item].numpy() @ weight + constant
        np.testing.assert_allclose(learnt.left_out_I[item], expected, atol=1e-5)
        assert abs(float(whole_I[item]) - expected) > 1e-5  # the item's own rate is in there
    assert whole_I[[4, -1]].isnan().all()
    torch.testing.assert_close(learnt.left_out_I[50:], whole_I[50:], equal_nan=True)


def test_the_penalty_is_the_one_that_predicts_left_out_items_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    item_IW, item_N, label_N = world()
    chosen, candidates = ContentRate.learn(item_IW, item_N, label_N), content_rate.PENALTIES

    def error(penalty: float) -> float:
        monkeypatch.setattr(content_rate, "PENALTIES", (penalty,))
        learnt = ContentRate.learn(item_IW, item_N, label_N)
        assert learnt.left_out_I is not None
        items = [i for i in item_N.unique().tolist() if item_IW[i].any()]
        count = torch.tensor([(item_N == i).sum() for i in items])
        rate = torch.tensor([label_N[item_N == i].mean() for i in items])
        return float((count / (count + NOISE) * (rate - learnt.left_out_I[items]).square()).sum())

    assert min(candidates, key=error) == chosen.penalty


def test_content_that_says_nothing_says_the_mean() -> None:
    item_IW, item_N, label_N = world()
    shuffled_N = label_N[torch.randperm(len(label_N), generator=torch.Generator().manual_seed(5))]
    rate_I = ContentRate.learn(item_IW, item_N, shuffled_N).of(item_IW)
    assert float((rate_I[50:60] - shuffled_N.mean()).abs().max()) < 0.1


def test_new_items_are_ranked_by_their_content() -> None:
    item_IW, item_N, label_N = world(num_items=400)
    rate_I = ContentRate.learn(item_IW, item_N, label_N).of(item_IW)
    new_I = torch.arange(300, 400)
    assert auc((item_IW[new_I, 0] > 0).float().numpy(), rate_I[new_I].numpy()) > 0.95


def test_too_few_items_are_refused() -> None:
    item_IW, _, _ = world()
    with pytest.raises(ValueError, match=r"rung rate: found 1 items with content among"):
        ContentRate.learn(item_IW, torch.tensor([0, 0, 4]), torch.tensor([1.0, 0.0, 1.0]))


def test_vectors_of_another_width_are_refused() -> None:
    item_IW, item_N, label_N = world()
    state = ContentRate.learn(item_IW, item_N, label_N).state()
    with pytest.raises(ValueError, match=r"found item vectors of width 4, expected 6"):
        ContentRate.restore(state, item_IW[:, :4])


def test_training_is_given_left_out_rates_and_later_splits_the_whole(
    dataset: Dataset, fit_config: FitConfig, fake_release: object
) -> None:
    data = CtrData.learn(dataset, fit_config)
    content = open_content("aligned+rate", fit_config, dataset=dataset, seed=0)
    assert content is not None
    train = content.fit(data)
    assert content.rate is not None
    assert content.std_S is not None
    assert content.rate.left_out_I is not None
    for features, split, rate_I in (
        (train, data.train, content.rate.left_out_I),
        (content.features(data, data.valid), data.valid, content.rate.of(content.item_IW)),
    ):
        found = features.similarity_NS[:, 3] * content.std_S[3] + content.mean_S[3]
        expected = rate_I[split.item_N.long()]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, equal_nan=True)
