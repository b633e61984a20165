"""The same folder is the same run: it goes on with its settings, and says when it has finished."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pretrain.changed_settings import all_settings
from pretrain.checkpoint_files import step_folders
from pretrain.cli import main, parse_run
from pretrain.release_config import signed
from pretrain.same_run import LEARNT, NOT_LEARNT, Change, changes

SETTINGS = """
--config configs/toy/pretrain.yaml --run.wandb off --run.progress_bar false
--data.config.global_batch_size 16 --data.config.targets_per_sample 4
--data.config.valid_queries 20 --trainer.log_every_n_steps 2 --trainer.accelerator cpu
--trainer.max_epochs 1 --trainer.enable_model_summary false --model.encoders.width 16
--model.encoders.ids both --model.encoders.id_dropout 0 --model.encoders.towers {}
""".split()
STEPS = 11

Fit = Callable[..., None]


@pytest.fixture(scope="module")
def fit(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    def fit(*words: str) -> None:
        main(["fit", *SETTINGS, "--data.config.dataset_dir", str(toy_dataset), *words])

    fit.run_dir = tmp_path_factory.mktemp("same") / "run"  # type: ignore[attr-defined]
    fit("--run.dir", str(fit.run_dir))  # type: ignore[attr-defined]
    return fit


@pytest.fixture(scope="module")
def run_dir(fit: Fit) -> Path:
    """Of a finished run."""
    folder: Path = fit.run_dir  # type: ignore[attr-defined]
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(fit: Fit, *words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        fit(*words)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_finished_run_says_so_and_is_left_as_it_is(
    fit: Fit, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(run_dir)
    with caplog.at_level(logging.INFO):
        fit("--run.dir", str(run_dir))
    assert (
        f"{run_dir}: already finished at step {STEPS} (trainer.max_epochs 1), nothing is trained; "
        "raise trainer.max_epochs, or choose another run.dir"
    ) in caplog.messages
    assert contents(run_dir) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model.optim.lr 1e-3", "model.optim.lr 0.002 -> 0.001"),
        ("--model.loss.pair_weight 0.5", "model.loss.pair_weight 0.02 -> 0.5"),
        ("--data.config.seed 1", "data.config.seed 0 -> 1"),
        ("--data.config.pairs.recent 2", "data.config.pairs.recent 10 -> 2"),
        ("--model.encoders.width 32", "model.encoders.width 16 -> 32"),
        ("--model.encoders.user.layers 2", "model.encoders.user.layers 1 -> 2"),
        ("--seed_everything 3", "seed_everything 0 -> 3"),
        ("--trainer.precision bf16-mixed", "trainer.precision null -> bf16-mixed"),
        ("--trainer.gradient_clip_val 2.5", "trainer.gradient_clip_val 1.0 -> 2.5"),
        ("--model.encoders.towers {'text':{'library':'given'}}",
         'model.encoders.towers [] -> ["text"]'),
        ("--trainer.max_epochs 2 --data.config.global_batch_size 8 --model.optim.warmup_steps 1",
         "model.optim.warmup_steps 30 -> 1; data.config.global_batch_size 16 -> 8"),
    ],
)  # fmt: skip
def test_other_settings_of_what_is_learnt_are_one_error_and_change_nothing(
    fit: Fit, run_dir: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run_dir)
    error = refusal(fit, "--run.dir", str(run_dir), *words.split(), capsys=capsys)
    assert f"{run_dir}: holds checkpoints of a run with other settings: {said}; set" in error
    assert "choose another run.dir" in error
    assert contents(run_dir) == before


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dataset_fingerprint": "of another"}, "on another dataset (toy, manifest of another"),
        ({"reused": {"teacher": {"newest_event": 1}}},
         'another model.reuse.teacher: {"newest_event": 1} -> null; set it back'),
    ],
)  # fmt: skip
def test_other_data_and_other_releases_are_an_error(
    fit: Fit,
    run_dir: Path,
    entry: dict[str, object],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    about = run_dir / "run.json"
    text = about.read_text()
    try:
        about.write_text(signed(json.loads(text) | entry))
        error = refusal(fit, "--run.dir", str(run_dir), capsys=capsys)
    finally:
        about.write_text(text)
    assert said in error


def test_a_longer_run_goes_on_and_its_changes_are_logged(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of this decides what is learnt."""
    words = ("--run.dir", str(tmp_path))
    fit(*words, "--trainer.max_steps", "4")
    with caplog.at_level(logging.INFO):
        fit(*words, "--trainer.max_epochs", "2", "--run.checkpoint_steps", "6",
            "--data.config.decode_threads", "2", "--model.loss.tile", "64",
            "--run.watch.hang_minutes", "5")  # fmt: skip
    (said,) = [one for one in caplog.messages if "other settings than before" in one]
    for change in ("trainer.max_epochs 1 -> 2", "trainer.max_steps 4 -> -1",
                   "run.checkpoint_steps null -> 6", "data.config.decode_threads 1 -> 2",
                   "model.loss.tile 1024 -> 64", "run.watch.hang_minutes 20.0 -> 5.0"):  # fmt: skip
        assert change in said
    assert said.endswith("; the learning rate falls over the new length")
    assert (tmp_path / "DONE").read_text() == f"step {2 * STEPS}\n"
    assert step_folders(tmp_path / "checkpoints")[0].name == f"step-{2 * STEPS}"
    assert (tmp_path / "metrics-1.csv").exists()


def test_processes_and_where_things_lie_are_free() -> None:
    """Strategies whose files differ are told apart by the checkpoint, see `test_resume_ranks`."""
    names = ("trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.strategy.stage",
             "trainer.accelerator", "trainer.val_check_interval", "trainer.callbacks", "run.dir",
             "run.keep.last", "data.config.dataset_dir", "data.config.cache_mb",
             "model.encoders.towers.text.checkpointing", "model.reuse.teacher")  # fmt: skip
    assert [name for name in names if Change(name, 1, 2).is_learnt] == []


def test_the_same_settings_are_no_change(
    fit: Fit, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fit("--run.dir", str(run_dir))
    assert "other settings" not in caplog.text


def test_an_older_version_had_the_defaults_of_what_it_did_not_know(run_dir: Path) -> None:
    now = yaml.safe_load((run_dir / "config.yaml").read_text())
    before = yaml.safe_load((run_dir / "config.yaml").read_text())
    del before["model"]["loss"]["tile"], before["model"]["reuse"], before["run"]["keep"]
    before["model"]["loss"]["gone"] = 3
    assert changes(before, now) == []
    now["model"]["loss"]["tile"] = 5
    assert [str(one) for one in changes(before, now)] == ["model.loss.tile 1024 -> 5"]


def test_a_tower_that_is_new_is_one_change(run_dir: Path) -> None:
    before, now = (yaml.safe_load((run_dir / "config.yaml").read_text()) for _ in range(2))
    for one in (before, now):
        one["model"]["encoders"]["towers"] = {"text": {"library": "given", "max_tokens": 8}}
    now["model"]["encoders"]["towers"]["image"] = {"library": "open_clip", "name": "x"}
    now["model"]["encoders"]["towers"]["text"]["max_tokens"] = 9
    assert [str(one) for one in changes(before, now) if one.is_learnt] == [
        'model.encoders.towers ["text"] -> ["image", "text"]',
        "model.encoders.towers.text.max_tokens 8 -> 9",
    ]
    assert [str(one) for one in changes(now, before) if one.is_learnt] == [
        'model.encoders.towers ["image", "text"] -> ["text"]',
        "model.encoders.towers.text.max_tokens 9 -> 8",
    ]


def test_cached_features_in_the_place_of_towers_are_a_change_and_a_moved_cache_is_none() -> None:
    configs = [{"model": {"encoders": {"towers": {}}}, "data": {"config": {"features_dir": one}}}
               for one in (None, "a", "b")]  # fmt: skip
    (taken_up,), (moved,) = changes(configs[0], configs[1]), changes(configs[1], configs[2])
    assert taken_up.is_learnt
    assert not moved.is_learnt


def test_the_settings_that_are_named_are_there(tmp_path: Path) -> None:
    words = ["--config", "configs/toy/pretrain.yaml", "--run.wandb", "off", "--run.dir",
             str(tmp_path), "--model.reuse.collaborative.path", "v",
             "--model.reuse.collaborative.newest_event", "0"]  # fmt: skip
    known = set(all_settings(parse_run(words, command="fit").settings()))
    known |= {"model.reuse.collaborative", "model.encoders.towers.*.checkpointing"}
    assert {one for one in (*LEARNT, *NOT_LEARNT) if not one.endswith(".*")} <= known
