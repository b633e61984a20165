"""Going on from an older run, and learning from a larger one."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_prep.columns import ImpressionColumns
from data_prep.settings import ShardConfig, SplitConfig
from data_prep.shard import shard_dataset
from finetune.batches import Batch, CtrTable
from finetune.content_settings import ContentConfig
from finetune.finished_run import open_run
from finetune.fit import Inputs, fit
from finetune.model import CtrModel
from finetune.objective import Objective
from finetune.position_bias import PositionTower
from finetune.report import report
from finetune.reuse import TEACHER, distilled, reuse
from finetune.reuse_settings import ReuseConfig
from finetune.run_folder import is_finished, read_config
from finetune.settings import FitConfig, HeadConfig, ReportConfig
from finetune.task_settings import DebiasConfig, PositionConfig, TaskConfig
from finetune.tasks import read_tasks
from finetune.vocabulary import CategoricalField, NumericField, Vocabulary
from finetune.warm_start import grown_table, grown_vocabulary, take_over

DEEPFM = HeadConfig(name="deepfm", embedding_width=4, hidden=(8,))


@pytest.fixture(scope="session")
def yesterday_dir(toy_config: ShardConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world as it was before its own validation time, with cut-offs of its own."""
    folder = tmp_path_factory.mktemp("yesterday") / "dataset"
    impressions = toy_config.impressions
    assert isinstance(impressions, ImpressionColumns)
    shard_dataset(
        dataclasses.replace(
            toy_config,
            dataset_dir=str(folder),
            items=dataclasses.replace(toy_config.items, image=None),
            split=SplitConfig(valid_start="2025-02-10", test_start="2025-02-14"),
            extra=None,
        )
    )
    return folder


@pytest.fixture
def yesterday(fit_config: FitConfig, yesterday_dir: Path) -> FitConfig:
    config = dataclasses.replace(
        fit_config, dataset_dir=yesterday_dir, head=DEEPFM, out_dir=fit_config.out_dir / "old"
    )
    fit(config)
    return config


def field(name: str, values: list[str], offset: int) -> CategoricalField:
    return CategoricalField(
        name=name, owner="user", kind="categorical", offset=offset, values=values
    )


NUMBER = NumericField(name="age", owner="user", mean=3.0, std=2.0)
OLD = Vocabulary(categorical=[field("a", ["x", "y"], 0), field("b", ["p"], 4)], numeric=[NUMBER])


def test_a_vocabulary_grows_behind_the_older_values() -> None:
    newer = dataclasses.replace(NUMBER, mean=9.0)
    new = Vocabulary(
        categorical=[field("a", ["w", "y"], 0), field("b", ["p", "q"], 4)], numeric=[newer]
    )
    grown = grown_vocabulary(OLD, new)
    assert [one.values for one in grown.categorical] == [["x", "y", "w"], ["p", "q"]]
    assert [one.offset for one in grown.categorical] == [0, 5]
    assert grown.numeric == [NUMBER]
    table = torch.arange(7.0)[:, None]
    # missing, unknown, x, y, and w as unknown; missing, unknown, p, and q as unknown
    assert grown_table(table, OLD, grown)[:, 0].tolist() == [0, 1, 2, 3, 1, 4, 5, 6, 5]


def test_other_fields_are_refused() -> None:
    for new in (
        Vocabulary(categorical=[field("a", [], 0)], numeric=[NUMBER]),
        Vocabulary(categorical=OLD.categorical, numeric=[]),
    ):
        with pytest.raises(ValueError, match="found other fields than the older run's"):
            grown_vocabulary(OLD, new)


def test_a_grown_model_scores_as_the_older_one_before_it_learns(
    yesterday: FitConfig, fit_config: FitConfig
) -> None:
    """A value that is new scores as the unknown value did, so all scores are the same."""
    today = dataclasses.replace(
        fit_config, head=DEEPFM, reuse=ReuseConfig(warm_start=yesterday.out_dir)
    )
    inputs = Inputs.open(today)
    model = CtrModel(today.head, data=inputs.data, content=None)
    new_values = take_over(model, inputs.data.vocabulary, yesterday.out_dir)
    assert new_values > 0
    _, _, valid = inputs.tables(today)
    older = open_run(yesterday.out_dir, dataset=inputs.dataset)
    expected = older.predictions(older.data.valid)["label"]
    torch.testing.assert_close(model.predict(valid), expected)


def test_a_warm_start_learns_on_and_says_from_what(
    yesterday: FitConfig, fit_config: FitConfig
) -> None:
    reuse = ReuseConfig(warm_start=yesterday.out_dir)
    today = dataclasses.replace(fit_config, head=DEEPFM, reuse=reuse)
    record = fit(today)
    assert record["warm_start"]["new_values"] > 0
    assert read_config(today.out_dir) == today
    assert is_finished(today)
    cold = dataclasses.replace(today, reuse=ReuseConfig(), out_dir=today.out_dir / "cold")
    fit(cold)
    first = [
        float((one.out_dir / "history.csv").read_text().splitlines()[1].split(",")[2])
        for one in (today, cold)
    ]
    assert first[0] < first[1]  # training log loss of the first epoch


def test_a_run_that_has_seen_the_validation_time_is_no_start(
    yesterday: FitConfig, fit_config: FitConfig
) -> None:
    today = dataclasses.replace(fit_config, head=DEEPFM)
    fit(today)
    reuse = ReuseConfig(warm_start=today.out_dir)
    backwards = dataclasses.replace(yesterday, reuse=reuse, out_dir=today.out_dir / "backwards")
    with pytest.raises(ValueError, match="it has seen what it is tested on"):
        fit(backwards)
    allowed = dataclasses.replace(backwards, allow_look_ahead=True)
    record = fit(allowed)
    assert record["warm_start"]["look_ahead"]
    assert record["provenance"]["look_ahead"]
    said = "allow_look_ahead: the run that was gone on from has seen the validation time"
    report(ReportConfig(run_dir=allowed.out_dir, num_resamples=10))
    page = (allowed.out_dir / "report.html").read_text()
    assert said in page
    assert "so these figures are not evidence" in page
    # Who goes on from that run knows what it knew.
    further = dataclasses.replace(
        backwards, reuse=ReuseConfig(warm_start=allowed.out_dir), out_dir=today.out_dir / "further"
    )
    known = fit(dataclasses.replace(further, allow_look_ahead=True))["warm_start"]["seen_until"]
    assert known == record["warm_start"]["seen_until"]


def test_a_teacher_that_has_seen_the_validation_time_is_reported(
    yesterday: FitConfig, fit_config: FitConfig
) -> None:
    today = dataclasses.replace(fit_config, head=DEEPFM)
    fit(today)
    taught = dataclasses.replace(
        yesterday, reuse=ReuseConfig(teacher=today.out_dir), out_dir=today.out_dir / "taught"
    )
    with pytest.raises(ValueError, match="it has seen what it is tested on"):
        fit(taught)
    record = fit(dataclasses.replace(taught, allow_look_ahead=True))
    assert record["provenance"]["looks_ahead"] == ["teacher"]
    same = dataclasses.replace(
        today, reuse=ReuseConfig(teacher=today.out_dir), out_dir=today.out_dir / "same"
    )
    assert not fit(same)["provenance"]["look_ahead"]


def test_another_head_is_no_start(yesterday: FitConfig, fit_config: FitConfig) -> None:
    reuse = ReuseConfig(warm_start=yesterday.out_dir)
    for head in (HeadConfig(name="dcnv2", embedding_width=4, hidden=(8,)),
                 dataclasses.replace(DEEPFM, embedding_width=8)):  # fmt: skip
        with pytest.raises(ValueError, match="found a model with other weights than this one"):
            fit(dataclasses.replace(fit_config, head=head, reuse=reuse))


def test_a_warm_start_reads_by_the_older_runs_codes_and_spreads(
    yesterday: FitConfig, fit_config: FitConfig
) -> None:
    few = ContentConfig(code_levels=2, num_codes=8, code_min_count=1)
    settings = {"head": DEEPFM, "rung": "raw+codes", "content": few}
    old = dataclasses.replace(yesterday, **settings, out_dir=yesterday.out_dir / "codes")
    fit(old)
    reuse = ReuseConfig(warm_start=old.out_dir)
    new = dataclasses.replace(fit_config, **settings, reuse=reuse)
    inputs = Inputs.open(new)
    content, _, valid = inputs.tables(new)
    model = CtrModel(new.head, data=inputs.data, content=content)
    take_over(model, inputs.data.vocabulary, old.out_dir)
    older = open_run(old.out_dir, dataset=inputs.dataset)
    torch.testing.assert_close(model.predict(valid), older.predictions(older.data.valid)["label"])
    fit(new, inputs)
    before, after = (load_file(one.out_dir / "content.safetensors") for one in (old, new))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for changes, message in (
        (
            {"content": dataclasses.replace(few, num_codes=4)},
            "found content.num_codes 4, expected 8",
        ),
        ({"rung": "raw"}, "found rung raw, expected raw\\+codes"),
        ({"rung": "none"}, r"fields.content\S*: none here, \d+ by 5 there"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(dataclasses.replace(new, **changes))


def test_a_warm_start_keeps_the_scales_of_its_labels(rich_config: FitConfig) -> None:
    tasks = {"seconds": TaskConfig(), "label": TaskConfig()}
    old = dataclasses.replace(rich_config, tasks=tasks)
    fit(old)
    path = old.out_dir / "tasks.json"
    learnt = json.loads(path.read_text())
    learnt["tasks"][0] |= {"mean": 7.0, "std": 3.0}  # as if it had seen other days
    path.write_text(json.dumps(learnt))
    new = dataclasses.replace(
        old,
        out_dir=old.out_dir / "new",
        reuse=ReuseConfig(warm_start=old.out_dir),
        allow_look_ahead=True,
    )
    fit(new)
    seconds = read_tasks(new.out_dir)[0]
    assert (seconds.mean, seconds.std) == (7.0, 3.0)
    turned = {"label": TaskConfig(), "seconds": TaskConfig()}
    with pytest.raises(ValueError, match=r"reuse.warm_start: found the tasks \[\('label', 'bce'\)"):
        fit(dataclasses.replace(new, tasks=turned))


@pytest.mark.parametrize("mode", ["add", "seen"])
def test_a_warm_start_goes_on_from_what_was_learnt_beside_the_model(
    mode: str, rich_config: FitConfig
) -> None:
    train = dataclasses.replace(
        rich_config.train, position=PositionConfig(mode=mode), task_weights="uncertainty"
    )
    tasks = {"label": TaskConfig(), "seconds": TaskConfig()}
    old = dataclasses.replace(rich_config, train=train, tasks=tasks)
    record = fit(old)
    places = dataclasses.replace(train.position, lr=1e-9)
    still = dataclasses.replace(train, lr=1e-9, id_lr=1e-9, max_epochs=1, position=places)
    new = dataclasses.replace(
        old,
        out_dir=old.out_dir / "new",
        train=still,
        reuse=ReuseConfig(warm_start=old.out_dir),
        allow_look_ahead=True,
    )
    found = fit(new)
    assert found["places"]["label"] == pytest.approx(record["places"]["label"], abs=1e-5)
    assert found["task_weights"] == pytest.approx(record["task_weights"], abs=1e-5)


def test_a_tower_keeps_the_places_that_a_new_log_lacks_and_adds_its_own() -> None:
    for num_places, expected in ((2, [1.0, 2.0, 3.0]), (4, [1.0, 2.0, 3.0, 0.0])):
        tower = PositionTower(num_places)
        tower.take_over(torch.tensor([1.0, 2.0, 3.0]))
        assert tower.place_P.tolist() == expected


def test_an_imputation_goes_on_with_a_grown_table(rich_config: FitConfig) -> None:
    train = dataclasses.replace(
        rich_config.train, debias=DebiasConfig(loss="dr", propensity="logged")
    )
    old = dataclasses.replace(rich_config, head=DEEPFM, train=train)
    fit(old)
    reuse = ReuseConfig(warm_start=old.out_dir)
    new = dataclasses.replace(old, reuse=reuse, out_dir=old.out_dir / "new", allow_look_ahead=True)
    still = dataclasses.replace(train, lr=1e-9, id_lr=1e-9, max_epochs=1)
    fit(dataclasses.replace(new, train=still))
    before, after = (load_file(one.out_dir / "objective.safetensors") for one in (old, new))
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0)


def test_a_student_comes_near_its_teacher(fit_config: FitConfig) -> None:
    teacher = dataclasses.replace(fit_config, head=DEEPFM, out_dir=fit_config.out_dir / "teacher")
    fit(dataclasses.replace(teacher, train=dataclasses.replace(teacher.train, lr=0.02, id_lr=0.02)))
    small = HeadConfig(name="lr")
    train = dataclasses.replace(
        fit_config.train, id_lr=0.05, id_l2=0.0, id_dropout=0.0, batch_size=16, max_epochs=1
    )
    distance = {}
    taught = open_run(teacher.out_dir)
    expected = taught.predictions(taught.data.train)["label"]
    for weight in (None, 1.0):
        reuse = ReuseConfig() if weight is None else ReuseConfig(
            teacher=teacher.out_dir, teacher_weight=weight
        )  # fmt: skip
        out_dir = fit_config.out_dir / f"student-{weight}"
        record = fit(
            dataclasses.replace(fit_config, head=small, train=train, reuse=reuse, out_dir=out_dir)
        )
        assert ("teacher" in record) == (weight is not None)
        student = open_run(out_dir)
        found = student.predictions(student.data.train)["label"]
        distance[weight] = float((found - expected).abs().mean())
    assert distance[1.0] < 0.8 * distance[None]


def test_distillation_is_its_formula() -> None:
    teacher_B, logit_B = torch.tensor([0.4, -2.0]), torch.tensor([1.0, 0.3])
    batch = Batch(*[torch.zeros(0)] * 2, [], *[torch.zeros(0)] * 4, outcomes={TEACHER: teacher_B})
    error_B = torch.tensor([0.5, 0.7])
    config = ReuseConfig(teacher=Path("t"), teacher_weight=0.25, temperature=2.0)
    p, q = (teacher_B / 2).sigmoid(), (logit_B / 2).sigmoid()
    soft_B = -(p * q.log() + (1 - p) * (1 - q).log())
    expected = 0.75 * error_B + 0.25 * 4 * soft_B
    torch.testing.assert_close(distilled(error_B, logit_B, batch, config=config), expected)


def test_a_student_of_a_share_of_the_negatives_serves_what_its_teacher_predicts(
    fit_config: FitConfig,
) -> None:
    teacher = dataclasses.replace(fit_config, head=DEEPFM, out_dir=fit_config.out_dir / "teacher")
    fit(teacher)
    student = dataclasses.replace(teacher, reuse=ReuseConfig(teacher=teacher.out_dir))
    data = Inputs.open(student).data
    model = CtrModel(DEEPFM, data=data, content=None, negative_rate=0.1)
    reuse(student, model, data=data)
    taught = open_run(teacher.out_dir)
    expected = taught.predictions(taught.data.train)["label"]
    # A student that has learnt its target to the letter.
    served = model.read(data.train.outcomes[TEACHER][:, None])["label"]
    torch.testing.assert_close(served, expected)


def test_a_teacher_is_matched_without_the_place(rich_config: FitConfig) -> None:
    train = dataclasses.replace(rich_config.train, position=PositionConfig(mode="add"))
    config = dataclasses.replace(
        rich_config,
        head=DEEPFM,
        train=train,
        reuse=ReuseConfig(teacher=Path("teacher"), teacher_weight=1.0),
    )
    data = Inputs.open(config).data
    model = CtrModel(DEEPFM, data=data, content=None).eval()
    objective = Objective(config, data=data, tasks=model.tasks).eval()
    with torch.no_grad():
        objective.towers["0"].place_P.fill_(2.0)
    batch = CtrTable(data.train, data.users, data.items, None).batch(torch.arange(64))
    teacher_B = torch.linspace(-3, 3, 64)
    batch.outcomes[TEACHER] = teacher_B
    logit_B = model(batch).output_BO[:, 0]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit_B, teacher_B.sigmoid())
    torch.testing.assert_close(objective(model, batch).loss, expected)


def test_a_label_may_be_called_teacher(rich_config: FitConfig) -> None:
    config = dataclasses.replace(rich_config, head=DEEPFM)
    data = Inputs.open(config).data
    model = CtrModel(DEEPFM, data=data, content=None)
    data.train.outcomes["teacher"] = data.train.label_N
    reuse(config, model, data=data)
    assert "teacher" in data.train.outcomes
    data.dataset.manifest.features.label[TEACHER] = "binary"
    with pytest.raises(ValueError, match=f"found a label {TEACHER}, which stands for"):
        reuse(config, model, data=data)


def test_runs_that_share_data_do_not_share_a_teacher(fit_config: FitConfig) -> None:
    config = dataclasses.replace(fit_config, head=DEEPFM)
    inputs = Inputs.open(config)
    alone = fit(config, inputs)
    taught = dataclasses.replace(
        config, reuse=ReuseConfig(teacher=config.out_dir), out_dir=config.out_dir / "taught"
    )
    fit(taught, inputs)
    again = fit(dataclasses.replace(config, out_dir=config.out_dir / "again"), inputs)
    assert again["test"] == alone["test"]


def test_a_teacher_of_another_label_is_refused(rich_config: FitConfig) -> None:
    teacher = dataclasses.replace(
        rich_config, tasks={"like": TaskConfig()}, out_dir=rich_config.out_dir / "teacher"
    )
    fit(teacher)
    with pytest.raises(ValueError, match=r"found a run of \['like'\], expected one that learnt"):
        fit(dataclasses.replace(rich_config, reuse=ReuseConfig(teacher=teacher.out_dir)))
    number = {"seconds": TaskConfig()}
    with pytest.raises(ValueError, match=r"reuse.teacher: found the head shared_bottom"):
        fit(
            dataclasses.replace(
                rich_config, tasks=number, reuse=ReuseConfig(teacher=teacher.out_dir)
            )
        )
