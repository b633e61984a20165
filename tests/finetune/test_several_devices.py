"""What several devices ask of a model, and what two processes give."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from data_prep.dataset import Dataset
from finetune import run_folder
from finetune.daily import by_day
from finetune.finished_run import open_run
from finetune.fit import Inputs, fit
from finetune.heads import HEADS
from finetune.model import CtrModel
from finetune.objective import Objective
from finetune.settings import FitConfig, TrainerConfig
from finetune.task_settings import DebiasConfig, PositionConfig, TaskConfig
from finetune.tasks import learn_tasks

ROOT = Path(__file__).parents[2]
RUNGS = ("noise", "raw", "aligned", "simtier", "content_attention", "codes", "tuned", "make")
SEVERAL = {"label": TaskConfig(), "like": TaskConfig()}


def without_gradient(config: FitConfig, inputs: Inputs) -> list[str]:
    """Parameters that are to be trained and that the loss of a batch does not reach."""
    torch.manual_seed(0)
    content, train, _ = inputs.tables(config)
    tasks = learn_tasks(config.tasks, inputs.data)
    model = CtrModel(config.head, data=inputs.data, content=content, tasks=tasks)
    objective = Objective(config, data=inputs.data, tasks=tasks)
    objective(model.train(), train.batch(torch.arange(512))).loss.backward()
    return [
        name
        for part in (model, objective)
        for name, one in part.named_parameters()
        if one.requires_grad and one.grad is None
    ]


def with_head(config: FitConfig, name: str, **changes: object) -> FitConfig:
    return dataclasses.replace(config, head=dataclasses.replace(config.head, name=name), **changes)


def with_train(config: FitConfig, **changes: object) -> FitConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def test_the_loss_of_every_head_reaches_every_parameter(
    fit_config: FitConfig, rich_config: FitConfig
) -> None:
    """DDP refuses a step after one that left a parameter out. The rich world has no numbers."""
    found = {}
    for config in (fit_config, rich_config):
        inputs = Inputs.open(config)
        for name in HEADS:
            found[config.dataset_dir, name] = without_gradient(with_head(config, name), inputs)
    inputs = Inputs.open(dataclasses.replace(rich_config, tasks=SEVERAL))
    several = with_train(
        rich_config, task_weights="uncertainty", position=PositionConfig(mode="seen")
    )
    for name in ("shared_bottom", "mmoe", "ple", "esmm"):
        found[name] = without_gradient(with_head(several, name, tasks=SEVERAL), inputs)
    ziln = {"bought": TaskConfig(loss="ziln")}
    found["ziln"] = without_gradient(dataclasses.replace(rich_config, tasks=ziln), inputs)
    found["two_arms"] = without_gradient(with_head(rich_config, "two_arms"), inputs)
    place = with_train(rich_config, position=PositionConfig(mode="add"))
    found["place"] = without_gradient(with_head(place, "din"), inputs)
    robust = with_train(rich_config, debias=DebiasConfig(loss="dr", propensity="items"))
    found["dr"] = without_gradient(with_head(robust, "din"), inputs)
    assert {name: left for name, left in found.items() if left} == {}


@pytest.mark.parametrize("head", ["deepfm", "din"])
def test_the_loss_on_every_rung_reaches_every_parameter(head: str, real_config: FitConfig) -> None:
    inputs = Inputs.open(real_config)
    found = {
        rung: without_gradient(with_head(real_config, head, rung=rung), inputs) for rung in RUNGS
    }
    assert {rung: left for rung, left in found.items() if left} == {}


@pytest.mark.parametrize(
    ("precision", "id_optimizer", "rung"),
    [
        ("bf16-mixed", "dense", "none"),
        ("bf16-true", "dense", "noise"),
        ("bf16-true", "sparse", "noise"),
        ("64-true", "sparse", "noise"),
    ],
)
def test_a_run_in_another_precision_is_saved_in_32_bits_as_it_was_judged(
    precision: str, id_optimizer: str, rung: str, fit_config: FitConfig
) -> None:
    trainer = TrainerConfig(accelerator="cpu", progress="none", precision=precision)
    config = with_train(fit_config, max_epochs=1, id_optimizer=id_optimizer)
    config = dataclasses.replace(config, trainer=trainer, rung=rung, judged_on="valid")
    fit(config)
    again = open_run(config.out_dir)
    found_N = next(iter(again.predictions(again.data.valid).values())).numpy()
    assert scores(config.out_dir).dtype == np.float32
    np.testing.assert_array_equal(found_N, scores(config.out_dir))


def test_a_strategy_that_is_none_is_refused(fit_config: FitConfig) -> None:
    for strategy in (
        {"class_path": "pretrain.zero.ZeroStrategy", "init_args": {"stages": 2}},
        {"class_path": "pathlib.Path"},
        {"class_path": "pretrain.zero.ZeroStrategy", "stage": 4},
        {"stage": 2},
    ):
        trainer = dataclasses.replace(fit_config.trainer, strategy=strategy)
        with pytest.raises(ValueError, match=r"trainer\.strategy"):
            fit(dataclasses.replace(fit_config, trainer=trainer))


def test_a_run_of_before_whose_bias_has_no_dimension_is_still_read(fit_config: FitConfig) -> None:
    from safetensors.torch import save_file

    fit(with_train(fit_config, max_epochs=1))
    path = fit_config.out_dir / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"fields.bias": weights["fields.bias"].reshape(())}, path)
    assert torch.equal(open_run(fit_config.out_dir).model.fields.bias, weights["fields.bias"])
    older = dataclasses.replace(fit_config.reuse, warm_start=fit_config.out_dir)
    out_dir = fit_config.out_dir.with_name("warm")
    fit(dataclasses.replace(fit_config, reuse=older, out_dir=out_dir, allow_look_ahead=True))


def scores(run_dir: Path) -> np.ndarray:
    return pq.read_table(run_dir / "predictions.parquet")["score"].to_numpy()


@dataclasses.dataclass
class TwoRanks:
    """What commands left that two processes ran together."""

    out: Path
    found: dict[str, list[list]]
    """Exit code and last line on stderr of each rank."""


@pytest.fixture(scope="module")
def two_ranks(
    toy_dataset: Path,
    rich_dir: Path,
    embeddings_dir: Path,
    dataset: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> TwoRanks:
    out = tmp_path_factory.mktemp("two_ranks")
    small = f"""--dataset_dir {toy_dataset} --embeddings_dir {embeddings_dir} --history_length 8
    --head.embedding_width 4 --head.hidden [8] --head.dropout 0 --train.id_dropout 0
    --train.id_lr 0.01 --train.lr 0.01 --train.batch_size 128 --train.max_epochs 2
    --trainer.accelerator cpu --trainer.devices 2 --trainer.progress none"""
    ddp, dense = "--trainer.strategy ddp", "--train.id_optimizer dense"
    deepfm = f"{dense} --head.name deepfm"
    zero = [f"--config {ROOT}/configs/zero{stage}.yaml" for stage in range(4)]
    flags = "--trainer.strategy.class_path pretrain.zero.ZeroStrategy"
    flags += " --trainer.strategy.init_args.stage 1"
    tasks = f"{dense} --dataset_dir {rich_dir} --head.name mmoe --train.position.mode add"
    tasks += ' --tasks {"label":{},"like":{}} --train.task_weights uncertainty'
    ladder = f"{ddp} --rungs [none,noise] --seeds [0] --num_resamples 20"
    last_days = len(by_day(dataset, day_starts_at=0)) - 2
    daily = f"{zero[3]} {deepfm} --first_days {last_days} --modes [incremental]"
    commands = {
        "din": f"fit {small} {ddp}",
        "sparse": f"fit {small} {zero[2]}",
        "reset": f"fit {small} {zero[1]} {dense} --train.id_reset each_epoch",
        "ladder": f"ladder {small} {ladder}",
        "ladder_kept": f"ladder {small} {ladder}",
        "ddp": f"fit {small} {ddp} {deepfm}",
        "zero1": f"fit {small} {flags} {deepfm}",
        "zero2": f"fit {small} {zero[2]} {deepfm}",
        "tasks_mixed": f"fit {small} {zero[2]} {tasks} --trainer.precision bf16-mixed",
        "tasks_bf16": f"fit {small} {zero[2]} {tasks} --trainer.precision bf16-true",
        "zero3": f"fit {small} {zero[3]} {deepfm}",
        "din_zero3": f"fit {small} {zero[3]} {dense} --rung noise",
        "daily": f"daily {small} --embeddings_dir null {daily}",
    }
    words = [
        [*text.split(), "--out_dir", str(out / name.removesuffix("_kept"))]
        for name, text in commands.items()
    ]
    (out / "commands.json").write_text(json.dumps(words))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launch += [str(ROOT / "tests/finetune/two_ranks.py"), str(out / "commands.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    ranks = [json.loads((out / f"found-{rank}.json").read_text()) for rank in range(2)]
    return TwoRanks(out, dict(zip(commands, zip(*ranks, strict=True), strict=True)))


@pytest.mark.ranks
def test_two_ranks_train_the_default_head_nearly_as_one_does(
    two_ranks: TwoRanks, fit_config: FitConfig
) -> None:
    """Nearly, as Dice normalises over the impressions of its own rank."""
    assert [code for code, _ in two_ranks.found["din"]] == [0, 0]
    together = run_folder.read_config(two_ranks.out / "din")
    alone = dataclasses.replace(together, out_dir=fit_config.out_dir, trainer=fit_config.trainer)
    fit(alone)
    found_N, expected_N = scores(together.out_dir), scores(alone.out_dir)
    assert np.abs(found_N - expected_N).mean() < expected_N.std() / 5


@pytest.mark.ranks
def test_zero_gives_what_ddp_gives(two_ranks: TwoRanks) -> None:
    expected_N = scores(two_ranks.out / "ddp")
    assert expected_N.std() > 0.03
    for stage in (1, 2, 3):
        assert [code for code, _ in two_ranks.found[f"zero{stage}"]] == [0, 0]
        found_N = scores(two_ranks.out / f"zero{stage}")
        np.testing.assert_allclose(found_N, expected_N, rtol=1e-3, atol=1e-5)
        strategy = run_folder.read_config(two_ranks.out / f"zero{stage}").trainer.arguments()
        assert strategy["strategy"].stage == stage


@pytest.mark.ranks
def test_zero_trains_tasks_content_and_days_in_bf16_too(two_ranks: TwoRanks) -> None:
    for name in ("tasks_mixed", "tasks_bf16", "din_zero3", "daily"):
        assert [code for code, _ in two_ranks.found[name]] == [0, 0], two_ranks.found[name]
    for name in ("tasks_mixed", "tasks_bf16", "din_zero3"):
        weights = load_file(two_ranks.out / name / "model.safetensors")
        assert {one.dtype for one in weights.values()} <= {torch.float32, torch.int64}


@pytest.mark.ranks
def test_zero_refuses_sparse_gradients_and_tables_that_start_anew(two_ranks: TwoRanks) -> None:
    for name, key, change in (
        ("sparse", "train.id_optimizer: found sparse", "train.id_optimizer: dense"),
        ("reset", "train.id_reset: found each_epoch", "trainer.strategy: ddp"),
    ):
        for code, said in two_ranks.found[name]:
            assert code == 2
            assert key in said
            assert change in said


@pytest.mark.ranks
def test_two_ranks_climb_a_ladder_and_one_of_them_reports(two_ranks: TwoRanks) -> None:
    for name in ("ladder", "ladder_kept"):
        assert [code for code, _ in two_ranks.found[name]] == [0, 0]
    figures = json.loads((two_ranks.out / "ladder" / "metrics.json").read_text())
    assert set(figures["rungs"]) == {"none", "noise"}
    assert (two_ranks.out / "ladder" / "report.html").is_file()
