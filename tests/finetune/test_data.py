import dataclasses

import numpy as np
import pytest
import torch

from data_prep.dataset import Dataset
from finetune.batches import CtrTable, EvalBatches, TrainBatches
from finetune.content import Content, open_content
from finetune.data import CtrData
from finetune.heads import HEADS
from finetune.model import CtrModel
from finetune.order import epoch_order
from finetune.settings import FitConfig, HeadConfig


@pytest.fixture
def data(dataset: Dataset, fit_config: FitConfig) -> CtrData:
    return CtrData.learn(dataset, fit_config)


def table_of(data: CtrData) -> CtrTable:
    return CtrTable(data.train, data.users, data.items, None)


def test_histories_hold_only_positives_strictly_before(data: CtrData) -> None:
    log, valid = data.positives, data.valid
    for row in range(0, len(valid), 37):
        user, at = int(valid.user_N[row]), int(valid.time_N[row])
        slice_ = slice(log.offsets[user], log.offsets[user + 1])
        before = log.item_rows[slice_][log.times[slice_] < at][-data.history_length :]
        history = valid.history_NL[row]
        assert history[history >= 0].tolist() == before.tolist()


def test_ids_unknown_to_training_get_the_unknown_row(data: CtrData) -> None:
    field = data.vocabulary.named("item_id")
    column = data.vocabulary.categorical.index(field)
    known = set(field.values)
    ids = data.dataset.items["item_id"].to_pylist()
    valid = data.valid
    for row in range(0, len(valid), 11):
        is_unknown = int(valid.ids_NF[row, column]) == field.unknown
        assert is_unknown == (ids[int(valid.item_N[row])] not in known)


def test_the_order_of_an_epoch_is_a_pure_function_of_seed_and_epoch() -> None:
    assert (epoch_order(50, seed=1, epoch=2) == epoch_order(50, seed=1, epoch=2)).all()
    assert (epoch_order(50, seed=1, epoch=2) != epoch_order(50, seed=1, epoch=3)).any()


def test_two_ranks_together_see_the_global_batches_of_one(data: CtrData) -> None:
    def batches(rank: int, world: int) -> list[set[int]]:
        found = TrainBatches(
            table_of(data), batch_size=64, seed=0, epoch=lambda: 1, rank=rank, world=world
        )
        return [set(batch.item_B.tolist()) for batch in found]

    alone, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
    assert len(alone) == len(first) == len(data.train) // 64
    assert all(a == f | s for a, f, s in zip(alone, first, second, strict=True))


def test_evaluation_sees_every_impression_once_in_order(data: CtrData) -> None:
    found = torch.cat([b.label_B for b in EvalBatches(table_of(data), batch_size=100)])
    assert torch.equal(found, data.train.label_N)


def test_reading_the_test_split_is_counted(data: CtrData) -> None:
    assert data.test_opened == 0
    data.open_test()
    assert data.test_opened == 1


def slow_centred(vectors: np.ndarray, centre: torch.Tensor | None) -> np.ndarray:
    if centre is None:
        return vectors
    moved = [row - centre.numpy() if row.any() else row for row in vectors]
    return np.stack([row / np.linalg.norm(row) if row.any() else row for row in moved])


def slow_similarities(content: Content, data: CtrData, row: int) -> list[float]:
    split = data.valid
    vectors = slow_centred(content.item_IW.numpy(), content.item_centre_W)
    target = vectors[int(split.item_N[row])]
    items = [int(item) for item in split.history_NL[row] if item >= 0]
    known = [vectors[item] for item in items if vectors[item].any()]
    if not known or not target.any():
        return [np.nan] * 3
    events = vectors if content.event_ID is None else content.event_ID.numpy()
    user = np.sum([events[item] for item in items], axis=0)
    user /= np.linalg.norm(user)
    user = slow_centred(user[None], content.user_centre_W)[0]
    cosines = [float(vector @ target) for vector in known]
    return [float(user @ target), max(cosines), float(np.mean(cosines))]


@pytest.mark.parametrize(
    "rung", ["noise", "raw", "aligned", "noise+rate", "raw+rate", "aligned+rate"]
)
def test_similarities_equal_a_slow_twin(
    rung: str,
    data: CtrData,
    fit_config: FitConfig,
    fake_release: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("content", "pair_cosines"):
        monkeypatch.setattr(f"finetune.{module}.CHUNK_BYTES", 5_000)  # several chunks
    content = open_content(rung, fit_config, dataset=data.dataset, seed=3)
    assert content is not None
    content.fit(data)
    assert (content.item_centre_W is not None) == rung.endswith("+rate")
    found = content.features(data, data.valid).similarity_NS * content.std_S + content.mean_S
    for row in range(0, len(data.valid), 23):
        expected = slow_similarities(content, data, row)
        np.testing.assert_allclose(found[row, :3], expected, atol=1e-5)


def test_similarities_are_standardised_on_training(
    data: CtrData, fit_config: FitConfig, fake_release: object
) -> None:
    content = open_content("aligned", fit_config, dataset=data.dataset, seed=0)
    assert content is not None
    found = content.fit(data).similarity_NS.numpy()
    np.testing.assert_allclose(np.nanmean(found, 0), 0, atol=1e-4)
    np.testing.assert_allclose(np.nanstd(found, 0), 1, atol=1e-4)


def test_noise_follows_the_seed_and_is_as_wide_as_aligned(
    data: CtrData, fit_config: FitConfig, fake_release: object
) -> None:
    def vectors(seed: int, rung: str = "noise") -> torch.Tensor:
        content = open_content(rung, fit_config, dataset=data.dataset, seed=seed)
        assert content is not None
        return content.item_IW

    assert torch.equal(vectors(1), vectors(1))
    assert not torch.equal(vectors(1), vectors(2))
    assert vectors(1).shape == vectors(1, "aligned").shape


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("rung", ["none", "raw"])
def test_every_parameter_of_a_model_gets_a_gradient(
    head: str, rung: str, data: CtrData, fit_config: FitConfig
) -> None:
    config = dataclasses.replace(fit_config, head=HeadConfig(name=head, embedding_width=4))
    content = open_content(rung, config, dataset=data.dataset, seed=0)
    features = content.fit(data) if content else None
    table = CtrTable(data.train, data.users, data.items, features)
    model = CtrModel(config.head, data=data, content=content)
    model(table.batch(torch.arange(512))).logit_B.square().sum().backward()
    unread = [n for n, p in model.named_parameters() if p.grad is None]
    assert unread == ([] if HEADS[head].uses_first_order else ["fields.bias"])


def test_lr_has_one_weight_a_value(data: CtrData) -> None:
    model = CtrModel(HeadConfig(name="lr", embedding_width=16), data=data, content=None)
    assert model.fields.table.first_order.shape == (data.vocabulary.num_rows, 1)
    assert model.fields.table.weight is None
    weights = sum(weight.numel() for weight in model.parameters())
    assert weights == data.vocabulary.num_rows + 3 * len(data.vocabulary.numeric) + 1


def test_ids_start_at_the_scale_that_is_asked_for(data: CtrData) -> None:
    config = HeadConfig(name="deepfm", embedding_width=16, id_std=0.3)
    table = CtrModel(config, data=data, content=None).fields.table
    for _ in range(2):  # and where the table starts anew
        assert all(float(one.detach().std()) == pytest.approx(0.3, rel=0.1) for one in table.tables)
        table.reset()
    with pytest.raises(ValueError, match=r"head\.id_std"):
        HeadConfig(id_std=0.0)


def test_a_head_is_told_where_the_ids_of_user_and_item_are(data: CtrData) -> None:
    model = CtrModel(HeadConfig(name="finalmlp"), data=data, content=None)
    batch = table_of(data).batch(torch.arange(64))
    inputs, _, _ = model.fields(batch)
    user, item = data.vocabulary.named("user_id"), data.vocabulary.named("item_id")
    for place, one in ((model.head.user_field, user), (model.head.item_field, item)):
        row_B = batch.ids_BF[:, place]
        assert ((row_B >= one.offset) & (row_B < one.offset + one.size)).all()
        torch.testing.assert_close(inputs.fields_BFE[:, place], model.fields.table.lookup(row_B)[0])
    torch.testing.assert_close(inputs.fields_BFE[:, model.head.item_field], inputs.target_BH)


def test_projecting_distinct_items_once_equals_projecting_each(
    data: CtrData, fit_config: FitConfig
) -> None:
    content = open_content("raw", fit_config, dataset=data.dataset, seed=0)
    features = content.fit(data)
    config = dataclasses.replace(fit_config.head, name="din")
    fields = CtrModel(config, data=data, content=content).fields.content
    batch = CtrTable(data.train, data.users, data.items, features).batch(torch.arange(32))
    target, history = fields.look_up(batch).each(fields.item)
    item_IW = content.item_IW
    torch.testing.assert_close(target, fields.item(item_IW[batch.item_B]))
    for place in range(history.shape[1]):
        expected = fields.item(item_IW[batch.history_BL[:, place].long()])
        torch.testing.assert_close(history[:, place], expected)


def test_without_histories_there_is_one_field_less(dataset: Dataset, fit_config: FitConfig) -> None:
    config = dataclasses.replace(fit_config, history_length=0)
    without, with_history = CtrData.learn(dataset, config), CtrData.learn(dataset, fit_config)
    models = [CtrModel(config.head, data=d, content=None) for d in (without, with_history)]
    assert models[0].fields.num_fields == models[1].fields.num_fields - 1
    batch = table_of(without).batch(torch.arange(16))
    assert batch.history_BL.shape == (16, 0)
    assert models[0](batch).logit_B.shape == (16,)
    with pytest.raises(
        ValueError, match="history_length: found 0, expected at least 1 for head din"
    ):
        CtrModel(HeadConfig(name="din"), data=without, content=None)


@pytest.mark.parametrize("head", ["deepfm", "din"])
def test_sparse_gradients_of_a_batch_are_the_dense_ones(
    head: str, data: CtrData, fit_config: FitConfig
) -> None:
    gradients = []
    for is_sparse in (True, False):
        torch.manual_seed(0)
        model = CtrModel(HeadConfig(name=head, embedding_width=4), data=data, content=None).eval()
        model.fields.table.sparse_gradient = is_sparse
        scored = model(table_of(data).batch(torch.arange(512)))
        (scored.logit_B.square().sum() + scored.id_square_sum).backward()
        gradients.append([table.grad for table in model.fields.table.tables])
    for sparse, dense in zip(*gradients, strict=True):
        assert sparse.is_sparse
        torch.testing.assert_close(sparse.to_dense(), dense)
