"""The rungs above frozen vectors: what each is made of, and that its runs can be used again."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_prep.dataset import Dataset
from finetune import run_folder
from finetune.batches import CtrTable
from finetune.code_fields import MISSING, UNKNOWN, ItemCodes
from finetune.content import open_content
from finetune.content_settings import ContentConfig
from finetune.data import CtrData
from finetune.fit import fit
from finetune.model import CtrModel
from finetune.module import CtrModule
from finetune.objective import Objective
from finetune.predict import predict
from finetune.rungs import NAMED, parse_rung
from finetune.settings import FitConfig, HeadConfig, PredictConfig
from finetune.sim_tier import count_tiers, tier_counts

SMALL = ContentConfig(
    tiers=6, tier_history=12, attention_width=4, attention_hidden=(4,), num_codes=4,
    code_min_count=2, make_epochs=2, make_hidden=(6, 3), tune_lr=1e-3, lora_rank=2,
)  # fmt: skip


@pytest.fixture
def data(dataset: Dataset, real_config: FitConfig) -> CtrData:
    return CtrData.learn(dataset, real_config)


def model_of(config: FitConfig, data: CtrData) -> tuple[CtrModel, CtrTable]:
    content = open_content(config.rung, config, dataset=data.dataset, seed=config.seed)
    table = CtrTable(data.train, data.users, data.items, content.fit(data))
    return CtrModel(config.head, data=data, content=content), table


def with_rung(
    config: FitConfig, rung: str, *, head: str = "deepfm", **content: object
) -> FitConfig:
    return dataclasses.replace(
        config,
        rung=rung,
        content=dataclasses.replace(SMALL, **content),
        head=HeadConfig(name=head, embedding_width=4, hidden=(8,)),
    )


def test_a_rung_is_vectors_and_parts() -> None:
    assert parse_rung("none").parts == frozenset()
    assert parse_rung("simtier").vectors == "aligned"
    assert parse_rung("raw+simtier+codes").parts == {"simtier", "codes"}
    assert all(parse_rung(name).parts for name in NAMED)


@pytest.mark.parametrize(
    ("rung", "message"),
    [
        ("best", "expected one of"),
        ("aligned+magic", "expected one of"),
        ("aligned+simtier+simtier", "expected one of"),
        ("none+simtier", r"write e.g. aligned\+simtier"),
        ("raw+tuned", r"write aligned\+tuned"),
    ],
)
def test_rungs_that_make_no_sense_are_refused(rung: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_rung(rung)


def test_tiers_count_cosines_like_a_histogram() -> None:
    cosine_BL = torch.rand(7, 9) * 2 - 1
    cosine_BL[0, :3] = torch.tensor([-1.0, 1.0, 0.0])
    known_BL = torch.rand(7, 9) < 0.7
    found = count_tiers(cosine_BL, known_BL, tiers=5)
    for row in range(7):
        values = cosine_BL[row][known_BL[row]].numpy()
        expected, _ = np.histogram(values, bins=5, range=(-1, 1))
        assert found[row].tolist() == expected.tolist()


def test_tier_counts_see_the_history_strictly_before_and_beyond_that_of_the_head(
    data: CtrData, real_config: FitConfig
) -> None:
    content = open_content("aligned", real_config, dataset=data.dataset, seed=0)
    item_IW, log = content.item_IW, data.positives
    found = tier_counts(data, data.valid, item_IW=item_IW, tiers=4, length=20)
    longer = 0
    for row in range(0, len(data.valid), 29):
        user, at = int(data.valid.user_N[row]), int(data.valid.time_N[row])
        mine = slice(log.offsets[user], log.offsets[user + 1])
        items = log.item_rows[mine][log.times[mine] < at][-20:].astype(int)
        longer += len(items) > data.history_length
        cosines = item_IW[items] @ item_IW[int(data.valid.item_N[row])]
        expected, _ = np.histogram(cosines.clamp(-1, 1).numpy(), bins=4, range=(-1, 1))
        np.testing.assert_allclose(np.expm1(found[row].numpy()), expected, atol=1e-4)
    assert longer


def test_codes_of_rare_prefixes_are_unknown_and_of_items_without_content_missing() -> None:
    item_IW = torch.eye(4).repeat_interleave(3, dim=0) + 0.01 * torch.randn(12, 4)
    item_IW = torch.cat([item_IW, torch.zeros(2, 4)])  # no content, and no item
    shown = torch.tensor([0, 0, 1, 3, 3, 3, 6, 9, 9])
    config = ContentConfig(num_codes=4, code_levels=2, code_min_count=2)
    codes = ItemCodes.learn(item_IW, shown, config=config)
    assert (codes.row_IV[-2:] == MISSING).all()
    level_1 = codes.row_IV[:, 0]
    assert level_1[0] == level_1[1] == level_1[2] > UNKNOWN  # three near vectors, one code
    assert len({int(row) for row in level_1[[0, 3, 9]]}) == 3
    assert (level_1[6:9] == UNKNOWN).all()  # shown once only
    again = ItemCodes.restore(codes.state(), item_IW)
    assert torch.equal(again.row_IV, codes.row_IV)
    assert int(codes.row_IV.max()) == codes.num_rows - 1


@pytest.mark.parametrize("head", ["lr", "deepfm", "din", "bst"])
@pytest.mark.parametrize(
    "rung", ["rate", "simtier", "content_attention", "codes", "tuned", "make", "aligned+rate+tuned"]
)
def test_every_parameter_of_a_rung_gets_a_gradient(
    rung: str, head: str, data: CtrData, real_config: FitConfig
) -> None:
    model, table = model_of(with_rung(real_config, rung, head=head), data)
    model(table.batch(torch.arange(256))).logit_B.square().sum().backward()
    assert not {n for n, p in model.named_parameters() if p.grad is None and p.requires_grad}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert ("fields.bias" in frozen) == (head in ("din", "bst"))  # which have no linear part
    frozen.discard("fields.bias")
    assert all(
        name.startswith(("fields.content.make.", "fields.content.items.ids")) for name in frozen
    )


@pytest.mark.parametrize(
    "rung",
    [
        "scratch", *NAMED, "raw+simtier+codes",
        "noise+rate", "raw+rate", "aligned+rate+simtier", "aligned+rate+tuned", "aligned+rate+make",
    ],
)  # fmt: skip
def test_a_run_of_every_rung_is_scored_again_as_it_was(
    rung: str, real_config: FitConfig, dataset: Dataset, tmp_path: Path
) -> None:
    config = with_rung(real_config, rung)
    record = fit(config)
    assert run_folder.read_config(config.out_dir) == config
    expected = pq.read_table(config.out_dir / "predictions.parquet")
    given = expected.select(["user_id", "item_id", "time"])
    context = dataset.impressions("test").select(["position", "device"])
    for name in context.column_names:
        given = given.append_column(name, context[name])
    pq.write_table(given, tmp_path / "new.parquet")
    out = tmp_path / "scores.parquet"
    predict(PredictConfig(run_dir=config.out_dir, impressions=tmp_path / "new.parquet", out=out))
    scores = pq.read_table(out)["score"].to_numpy()
    np.testing.assert_allclose(scores, expected["score"].to_numpy(), atol=1e-6)
    assert len(record["make"]) == (2 if "make" in parse_rung(rung).parts else 0)


def test_an_encoder_that_is_not_trained_gives_the_released_vectors(
    data: CtrData, real_config: FitConfig
) -> None:
    """Both ways: the catalogue's table, and the distinct items of a batch."""
    model, table = model_of(with_rung(real_config, "tuned"), data)
    content = open_content("aligned", real_config, dataset=data.dataset, seed=0)
    items = model.fields.content.items.eval()
    torch.testing.assert_close(items(torch.arange(-1, 5)), content.item_IW[torch.arange(-1, 5)])
    batch = table.batch(torch.arange(64))
    model.eval()
    similarity_BS = model.fields.content.look_up(batch).similarity_BS
    torch.testing.assert_close(
        similarity_BS, batch.similarity_BS, equal_nan=True, atol=1e-4, rtol=1e-4
    )
    encoder = items.encoder.eval()
    items.training = True  # a batch's own items, without dropout
    found = items(torch.tensor([-1, 3, 4]))
    assert not encoder.training
    torch.testing.assert_close(found, content.item_IW[[-1, 3, 4]])


@pytest.mark.parametrize(
    ("tune", "blocks"), [("adapter", 0), ("top_k", 1), ("lora", 1), ("full", 1)]
)
def test_the_encoder_is_trained_as_far_as_it_is_asked_and_at_its_own_rate(
    tune: str, blocks: int, data: CtrData, real_config: FitConfig
) -> None:
    config = with_rung(real_config, "tuned", tune=tune)
    model, table = model_of(config, data)
    objective = Objective(config, data=data, tasks=model.tasks)
    module = CtrModule(
        model, config.train, objective=objective, train=table, valid=table, seed=0, encoder_lr=3e-5
    )
    optimizer = module.configure_optimizers()
    encoder = {id(p) for p in optimizer.param_groups[2]["params"]}
    assert optimizer.param_groups[2]["lr"] == 3e-5
    names = [n for n, p in model.named_parameters() if id(p) in encoder]
    assert any(".adapters." in name for name in names)
    assert any(".backbones." in name for name in names) == bool(blocks)
    if tune == "lora":
        trained = [name for name in names if ".backbones." in name]
        assert all("lora_" in name for name in trained)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if n in names}
    model.train()
    loss = model(table.batch(torch.arange(32))).logit_B.square().sum()
    loss.backward()
    optimizer.step()
    moved = {
        n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])
    }
    assert any(".adapters." in name for name in moved)
    assert any(".backbones." in name for name in moved) == bool(blocks)


def test_make_is_trained_on_content_alone_and_then_stands_still(
    real_config: FitConfig, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    def weights(max_epochs: int) -> dict[str, torch.Tensor]:
        config = with_rung(real_config, "make")
        train = dataclasses.replace(config.train, max_epochs=max_epochs, patience=9)
        out_dir = tmp_path / str(max_epochs)
        fit(dataclasses.replace(config, train=train, out_dir=out_dir))
        return load_file(out_dir / "model.safetensors")

    once, twice = weights(1), weights(3)
    made = [name for name in once if name.startswith("fields.content.make.")]
    assert made
    assert all(torch.equal(once[name], twice[name]) for name in made)


def test_scratch_is_as_wide_as_the_release_and_follows_the_seed(
    data: CtrData, real_config: FitConfig
) -> None:
    def vectors(seed: int, rung: str = "scratch") -> torch.Tensor:
        return open_content(rung, real_config, dataset=data.dataset, seed=seed).item_IW

    assert torch.equal(vectors(1), vectors(1))
    assert not torch.allclose(vectors(1), vectors(2))
    assert vectors(1).shape == vectors(1, "aligned").shape


def test_a_knock_out_is_scored_with_vectors_that_lack_the_modality(
    real_config: FitConfig, blind_embeddings: Path
) -> None:
    config = dataclasses.replace(with_rung(real_config, "aligned"), knock_outs=(blind_embeddings,))
    record = fit(config)
    assert set(record["knock_outs"]) == {"image"}
    assert record["knock_outs"]["image"]["logloss"] != record["test"]["logloss"]
    blind = dataclasses.replace(config, out_dir=config.out_dir.parent / "again", knock_outs=())
    assert fit(blind)["test"] == record["test"]  # looking at it changed nothing
    assert fit(dataclasses.replace(config, rung="raw"))["knock_outs"] == {}


def test_whole_vectors_are_no_knock_out(real_config: FitConfig, real_embeddings: Path) -> None:
    config = dataclasses.replace(with_rung(real_config, "aligned"), knock_outs=(real_embeddings,))
    with pytest.raises(ValueError, match="vectors of all modalities"):
        fit(config)


def test_settings_are_chosen_without_opening_test(real_config: FitConfig, dataset: Dataset) -> None:
    config = dataclasses.replace(with_rung(real_config, "none"), judged_on="valid")
    record = fit(config)
    assert record["test_opened"] == 0
    assert record["test"]["auc"] == pytest.approx(record["valid"]["val/auc"])
    predictions = pq.read_table(config.out_dir / "predictions.parquet")
    assert predictions.num_rows == dataset.manifest.counts["impressions_valid"]


def test_ids_that_start_anew_each_epoch_do_not_remember_the_last(real_config: FitConfig) -> None:
    """Training AUC within an epoch: ids that were seen before raise it, anew ones cannot."""

    def last_epoch(reset: str) -> float:
        train = dataclasses.replace(
            real_config.train, max_epochs=4, patience=9, id_lr=0.05, id_l2=0.0, id_reset=reset
        )
        config = dataclasses.replace(with_rung(real_config, "none"), train=train)
        fit(dataclasses.replace(config, out_dir=config.out_dir.parent / reset))
        return run_folder.Run.load(config.out_dir.parent / reset).history[-1]["train/auc"]

    assert last_epoch("never") > last_epoch("each_epoch") + 0.05


def test_content_is_penalised_where_it_is_asked_and_never_on_ids_alone(
    data: CtrData, real_config: FitConfig
) -> None:
    def penalty(rung: str, content_l2: float) -> torch.Tensor:
        config = with_rung(real_config, rung)
        train = dataclasses.replace(config.train, content_l2=content_l2, id_l2=0.0, id_dropout=0.0)
        content = open_content(rung, config, dataset=data.dataset, seed=0)
        features = content.fit(data) if content else None
        table = CtrTable(data.train, data.users, data.items, features)
        model = CtrModel(config.head, data=data, content=content).eval()
        config = dataclasses.replace(config, train=train)
        objective = Objective(config, data=data, tasks=model.tasks)
        module = CtrModule(model, train, objective=objective, train=table, valid=table, seed=0)
        module.log = lambda *_, **__: None
        batch = table.batch(torch.arange(64))
        with_it = module.training_step(batch, 0).item()
        scored = model(batch)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scored.logit_B, batch.label_B)
        return with_it - loss.item(), scored.content_square_sum.item() / 64

    assert penalty("none", 0.5)[0] == pytest.approx(0, abs=1e-6)
    assert penalty("aligned", 0.0)[0] == pytest.approx(0, abs=1e-6)
    found, mean_square = penalty("aligned", 0.5)
    assert found == pytest.approx(0.5 * mean_square, rel=1e-3)
    assert mean_square > 0


def test_a_head_is_given_the_similarities_that_are_asked_for(
    data: CtrData, real_config: FitConfig
) -> None:
    chosen = ("history_mean_to_item", "user_to_item")
    model, table = model_of(with_rung(real_config, "make", similarities=chosen), data)
    batch = table.batch(torch.arange(32))
    found = model.fields.content.look_up(batch).similarity_BS
    torch.testing.assert_close(found, batch.similarity_BS[:, [2, 0]], equal_nan=True)
    whole, _ = model_of(with_rung(real_config, "make"), data)
    assert whole.fields.num_fields == model.fields.num_fields + 1
    with pytest.raises(ValueError, match=r"content.similarities: found \('user_to_item', 'user_"):
        ContentConfig(similarities=("user_to_item", "user_to_item"))


@pytest.mark.parametrize("head", ["deepfm", "din"])
def test_a_rate_stands_in_place_of_the_vectors(
    head: str, data: CtrData, real_config: FitConfig
) -> None:
    chosen = ("history_mean_to_item",)  # of other rungs
    model, table = model_of(with_rung(real_config, "rate", head=head, similarities=chosen), data)
    whole, _ = model_of(with_rung(real_config, "aligned", head=head), data)
    assert model.fields.num_fields == whole.fields.num_fields - 2 + 1  # and the rate
    batch = table.batch(torch.arange(256))
    found = model.fields.content.look_up(batch).similarity_BS
    torch.testing.assert_close(found, batch.similarity_BS, equal_nan=True)
    assert found.shape[1] == 4
    model(batch).logit_B.square().sum().backward()
    assert not {n for n, p in model.named_parameters() if p.grad is None and p.requires_grad}


def test_a_tuned_run_scores_the_items_of_another_dataset_from_their_content(
    real_config: FitConfig, dataset: Dataset, tmp_path: Path
) -> None:
    """The folder of cached features is of the items trained on, and need not be there any more."""
    config = with_rung(real_config, "tuned")
    fit(config)
    path = config.out_dir / run_folder.CONFIG_FILE
    path.write_text(path.read_text().replace("features_dir: null", "features_dir: /gone"))
    assert run_folder.read_config(config.out_dir).content.features_dir == Path("/gone")
    expected = pq.read_table(config.out_dir / "predictions.parquet")
    context = dataset.impressions("test").select(["position", "device"])
    given = expected.select(["user_id", "item_id", "time"])
    for name in context.column_names:
        given = given.append_column(name, context[name])
    pq.write_table(given, tmp_path / "new.parquet")
    words = {"run_dir": config.out_dir, "impressions": tmp_path / "new.parquet"}
    with pytest.raises(ValueError, match="run python -m pretrain features again"):
        predict(PredictConfig(**words, out=tmp_path / "a.parquet"))
    predict(PredictConfig(**words, out=tmp_path / "b.parquet", dataset_dir=dataset.dir))
    found = pq.read_table(tmp_path / "b.parquet")["score"].to_numpy()
    np.testing.assert_allclose(found, expected["score"].to_numpy(), atol=1e-6)
