"""Blending scores: signals by their definition, weights that are learnt, files that are refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import torch

from pretrain.blend import blend, fit_weights, load_blend
from pretrain.blend_places import PlaceConfig
from pretrain.blend_samples import Question, draw_cases
from pretrain.blend_signals import (
    Log,
    SignalConfig,
    Signals,
    age_groups,
    born_years,
    expected_log_count,
    standardised,
)
from pretrain.cases import read_cases
from pretrain.evaluate import evaluate

ITEMS = np.arange(40)
NEW = ITEMS >= 30
"""Nobody chose these in the log."""
YEAR_MS = 31_556_952_000


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def lists(rows: list[list[int]]) -> pa.Array:
    return pa.array(rows, pa.list_(pa.int64()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Even users like even items, odd ones odd; of the new items only the young ones are taken."""
    folder = tmp_path_factory.mktemp("blend")
    rng = np.random.default_rng(0)
    users, items = [], []
    for user in range(60):
        for item in rng.choice(np.flatnonzero(~NEW & (ITEMS % 2 == user % 2)), 6, replace=False):
            users.append(user)
            items.append(int(item))
    write(folder / "train.parquet", user_id=users, item_id=items, timestamp=list(range(len(users))))
    vectors = np.stack([ITEMS % 2 == 0, ITEMS % 2 == 1], axis=1) + rng.normal(0, 0.1, (40, 2))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), 2)
    write(folder / "vectors.parquet", item_id=ITEMS, raw=flat)
    born = np.where(NEW, np.where(ITEMS < 34, 2020, 1990), 2000)
    write(folder / "items.parquet", item_id=ITEMS, year=pa.array(born, pa.float64()))
    for name, seed in (("valid", 1), ("test", 2)):
        draw = np.random.default_rng(seed)
        history = [
            draw.choice(np.flatnonzero(~NEW & (ITEMS % 2 == user % 2)), 3, replace=False).tolist()
            for user in range(60)
        ]
        target = [
            int(draw.choice(np.flatnonzero(NEW & (ITEMS < 34) & (ITEMS % 2 == user % 2))))
            for user in range(60)
        ]
        write(
            folder / f"{name}.parquet",
            user_id=list(range(60)),
            history=lists(history),
            history_times=lists([[YEAR_MS] * 3 for _ in history]),
            at_time=[50 * YEAR_MS + YEAR_MS // 2 + seed] * 60,
            targets=lists([[one] for one in target]),
        )
    return folder


CONFIG = SignalConfig(ease_l2=10.0, content_weight=1.0, born="year")


def learn(
    folder: Path, out: Path, config: SignalConfig = CONFIG, *, places: PlaceConfig | None = None
) -> Path:
    blend(
        [Question(cases=folder / "valid.parquet", train=folder / "train.parquet")],
        out,
        vectors=[folder / "vectors.parquet"],
        items=folder / "items.parquet",
        signals=config,
        places=places,
        timestamp_unit="s",
    )
    return out


def test_a_blend_finds_new_items_that_no_system_alone_finds(folder: Path, tmp_path: Path) -> None:
    out = learn(folder, tmp_path / "blend.json")
    result = evaluate(
        folder / "test.parquet",
        tmp_path / "metrics.json",
        train=folder / "train.parquet",
        vectors=[folder / "vectors.parquet"],
        items=folder / "items.parquet",
        blend=out,
        k=2,
        timestamp_unit="s",
    )["catalogue"]
    alone = [values["recall@2"] for name, values in result.items() if name != "ours_blended"]
    assert result["ours_blended"]["recall@2"] == 1.0  # two of the new ones are of each taste
    assert max(alone) < 0.5
    about = json.loads(out.read_text())["about"]
    assert about["log_loss"]["learnt"] < about["log_loss"]["even"]


def test_places_and_tastes_are_kept_in_the_file(folder: Path, tmp_path: Path) -> None:
    """Half of the choices are new: a list of two gets one place for them, or both."""
    cases = pq.read_table(folder / "valid.parquet")
    known = [[(one[0] - 4) % 30] for one in cases["history"].to_pylist()[::2]]
    targets = [*known, *cases["targets"].to_pylist()[1::2]]
    order = np.argsort(np.r_[np.arange(0, 60, 2), np.arange(1, 60, 2)])
    mixed = cases.set_column(
        cases.column_names.index("targets"), "targets", lists([targets[place] for place in order])
    )
    unseen = [
        not set(history) & set(target)
        for history, target in zip(
            mixed["history"].to_pylist(), mixed["targets"].to_pylist(), strict=True
        )
    ]
    pq.write_table(mixed.filter(pa.array(unseen)), tmp_path / "valid.parquet")
    config = dataclasses.replace(CONFIG, latest=2)
    (tmp_path / "train.parquet").symlink_to(folder / "train.parquet")
    for name in ("vectors", "items"):
        (tmp_path / f"{name}.parquet").symlink_to(folder / f"{name}.parquet")
    learn(tmp_path, tmp_path / "without.json", config)
    places = PlaceConfig(new_weight=100.0, k=2)
    out = learn(tmp_path, tmp_path / "blend.json", config, places=places)
    found, plain = load_blend(out), load_blend(tmp_path / "without.json")
    assert found.weights == plain.weights
    assert plain.places is None
    assert found.places is not None
    assert found.places.new_found[2] > 0
    assert {"ease_lately", "knn_raw_lately_of_new", "new_lately"} <= set(found.weights)
    recalls = [
        evaluate(
            folder / "test.parquet",
            tmp_path / "metrics.json",
            train=folder / "train.parquet",
            vectors=[folder / "vectors.parquet"],
            items=folder / "items.parquet",
            blend=file,
            k=2,
            timestamp_unit="s",
        )["catalogue"]["ours_blended"]["recall@2"]
        for file in (out, tmp_path / "without.json")
    ]
    assert recalls[0] == 1.0 > recalls[1]  # two of the new ones are of each taste


def test_signals_of_another_kind_are_refused(folder: Path, tmp_path: Path) -> None:
    out = learn(folder, tmp_path / "blend.json")
    table = pq.read_table(folder / "train.parquet").drop_columns("timestamp")
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="log_recent_count"):
        evaluate(
            folder / "test.parquet",
            tmp_path / "metrics.json",
            train=tmp_path / "train.parquet",
            vectors=[folder / "vectors.parquet"],
            items=folder / "items.parquet",
            blend=out,
        )


def test_ages_need_a_table_and_a_time(folder: Path, tmp_path: Path) -> None:
    cases = pq.read_table(folder / "valid.parquet").drop_columns(["history_times", "at_time"])
    pq.write_table(cases, tmp_path / "valid.parquet")
    question = Question(cases=tmp_path / "valid.parquet", train=folder / "train.parquet")
    vectors = [folder / "vectors.parquet"]
    with pytest.raises(ValueError, match="items: found none"):
        blend([question], tmp_path / "b.json", vectors=vectors, signals=CONFIG)
    with pytest.raises(ValueError, match="found no at_time"):
        blend(
            [question],
            tmp_path / "b.json",
            vectors=vectors,
            items=folder / "items.parquet",
            signals=CONFIG,
        )


def test_questions_of_several_days_have_their_own_vectors(folder: Path, tmp_path: Path) -> None:
    vectors = folder / "vectors.parquet"
    shuffled = tmp_path / "shuffled.parquet"
    table = pq.read_table(vectors)
    pq.write_table(table.take(np.arange(len(table))[::-1]), shuffled)
    of_today = Question(cases=folder / "valid.parquet", train=folder / "train.parquet")
    words = {"items": folder / "items.parquet", "signals": CONFIG, "timestamp_unit": "s"}
    found = []
    for name, questions, shared in (
        ("shared", [of_today, of_today], [vectors]),
        (
            "own",
            [dataclasses.replace(of_today, vectors=(one,)) for one in (vectors, shuffled)],
            None,
        ),
    ):
        out = tmp_path / f"{name}.json"
        blend(questions, out, vectors=shared, max_candidates=50, **words)  # type: ignore[arg-type]
        found.append(load_blend(out).weights)
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    about = json.loads((tmp_path / "own.json").read_text())["about"]["questions"]
    assert [one["vectors"] for one in about] == [[str(vectors)], [str(shuffled)]]


def test_questions_that_lack_vectors_or_signals_are_refused(folder: Path, tmp_path: Path) -> None:
    question = Question(cases=folder / "valid.parquet", train=folder / "train.parquet")
    vectors = [folder / "vectors.parquet"]
    for one, shared in (
        (question, None),
        (dataclasses.replace(question, released=tmp_path), vectors),
    ):
        with pytest.raises(ValueError, match=r"questions\[0\]\.vectors: found none"):
            blend([one], tmp_path / "b.json", vectors=shared)
    without_times = tmp_path / "train.parquet"
    pq.write_table(pq.read_table(question.train).drop_columns("timestamp"), without_times)
    with pytest.raises(ValueError, match="different signals from one to the other"):
        blend(
            [question, dataclasses.replace(question, train=without_times)],
            tmp_path / "b.json",
            vectors=vectors,
            items=folder / "items.parquet",
            signals=CONFIG,
            timestamp_unit="s",
        )


@pytest.mark.parametrize(
    "text", ["{", '{"schema_version": 9}', '{"schema_version": 1, "weights": {"a": "b"}}', "[]"]
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "blend.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"blend\.json: found .* learn it again"):
        load_blend(path)


def test_what_is_written_is_read(folder: Path, tmp_path: Path) -> None:
    found = load_blend(learn(folder, tmp_path / "blend.json"))
    assert found.signals == CONFIG
    assert found.weights == json.loads((tmp_path / "blend.json").read_text())["weights"]


def test_ages_are_those_at_the_time_of_the_question(folder: Path) -> None:
    catalogue = pa.array(ITEMS)
    asked = read_cases(folder / "valid.parquet", catalogue=catalogue)
    born_N = np.full(40, np.nan)
    born_N[:4] = [2021, 2020, 2019, 1900]
    train = sp.csr_matrix((np.ones(2, np.float32), ([0, 1], [5, 6])), shape=(2, 40))
    signals = Signals(
        asked,
        Log(train_UN=train, recent_N=None),
        config=CONFIG,
        vector_NDs={"raw": np.eye(40, dtype=np.float32)},
        born_N=born_N,
        release=None,
    )
    values = dict(signals.each(slice(0, 1)))
    groups = {
        name: values[name][0].nonzero().flatten()[:2].tolist()
        for name in age_groups(CONFIG.age_edges)
    }
    assert {name: rows for name, rows in groups.items() if rows} == {
        "age_below_0": [0],
        "age_from_0": [1],
        "age_from_1": [2],
        "age_from_41": [3],
        "age_unknown": [4, 5],
    }
    assert values["new"].sum() == 38
    assert torch.equal(values["ease_of_new"][0, 5:7], torch.zeros(2))
    assert values["knn_raw"].mean().abs() < 1e-5
    assert values["knn_raw"].std() == pytest.approx(1, abs=1e-3)


def test_expected_counts_follow_content_for_items_nobody_chose() -> None:
    content = np.repeat(np.eye(2, dtype=np.float32), 50, axis=0)
    count = np.r_[np.full(49, 20), 0, np.full(49, 2), 0]
    expected = expected_log_count(content, count)
    assert expected[49] > 2 * expected[99]


def test_learnt_weights_are_those_of_the_softmax_that_made_the_choices() -> None:
    generator = torch.Generator().manual_seed(0)
    values_BKS = torch.randn(4000, 8, 3, generator=generator)
    true_S = torch.tensor([1.0, -0.5, 0.0])
    gumbel = -torch.log(-torch.log(torch.rand(4000, 8, generator=generator)))
    chosen_B = (values_BKS @ true_S + gumbel).argmax(1)
    order_BK = torch.stack([torch.roll(torch.arange(8), -int(c)) for c in chosen_B])
    shown = values_BKS.gather(1, order_BK[..., None].expand(-1, -1, 3))
    weights, losses = fit_weights([shown], names=["a", "b", "c"], l2=0.0)
    np.testing.assert_allclose(list(weights.values()), true_S, atol=0.1)
    assert losses["even"] == pytest.approx(np.log(8), abs=1e-5)


def test_candidates_that_do_not_count_change_nothing() -> None:
    values_BKS = torch.randn(50, 5, 2, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([values_BKS, torch.full((50, 2, 2), torch.nan)], dim=1)
    plain, _ = fit_weights([values_BKS], names=["a", "b"], l2=0.01)
    found, _ = fit_weights([padded], names=["a", "b"], l2=0.01)
    assert found == pytest.approx(plain, abs=1e-4)


def test_users_of_many_cases_are_not_drawn_more_often() -> None:
    users = torch.tensor([0] * 990 + list(range(1, 11)))
    drawn = draw_cases(users, np.random.default_rng(0), num_cases=5)
    assert len(set(drawn.tolist())) == 5
    assert (users[drawn] == 0).sum() <= 2


def test_an_absent_item_stays_absent_when_standardised() -> None:
    vectors = np.random.default_rng(0).normal(3, 1, (10, 4)).astype(np.float32)
    vectors[3] = 0
    found = standardised(vectors)
    assert not found[3].any()
    np.testing.assert_allclose(np.linalg.norm(np.delete(found, 3, 0), axis=1), 1, rtol=1e-5)


def test_times_are_turned_into_years() -> None:
    years = born_years(pa.chunked_array([[0, None, 31_556_952]]), unit="s")
    np.testing.assert_allclose(years, [1970, np.nan, 1971])
    assert born_years(pa.chunked_array([[1999.0]]), unit="year").tolist() == [1999]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="recent_share"):
        SignalConfig(recent_share=1.0)
    with pytest.raises(ValueError, match="age_edges"):
        SignalConfig(age_edges=(3.0, 1.0))
    with pytest.raises(ValueError, match="content"):
        SignalConfig(content=())
