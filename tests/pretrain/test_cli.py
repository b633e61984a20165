"""A user's mistake is one clear error before any process group starts."""

import json
import shutil
from pathlib import Path

import pytest
import torch.distributed as dist

from pretrain.cli import main
from pretrain.release import load_released

TOY = ["fit", "--config", "configs/toy/pretrain.yaml", "--run.wandb", "off"]


def error_of(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code not in (0, None)
    assert not dist.is_initialized()
    return capsys.readouterr().err + str(stopped.value.code)


@pytest.fixture
def words(tmp_path: Path, toy_dataset: Path) -> list[str]:
    folders = ["--run.dir", str(tmp_path / "run"), "--data.config.dataset_dir", str(toy_dataset)]
    return [*TOY, *folders]


def test_an_unknown_key(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "tempreature" in error_of([*words, "--model.loss.tempreature", "1"], capsys)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (["--model.optim.learning_rate", "1"], "model.optim.learning_rate: found a setting that "
         "does not exist, expected one of lr, backbone_lr, weight_decay, warmup_steps, "
         "final_lr_ratio"),
        (["--trainer.precison", "32"], "trainer.precison: found a setting that does not exist; did "
         "you mean trainer.precision?"),
        (["--model.encoders.towers", '{"image": {"kind": "given"}}'], "model.encoders.towers.kind: "
         "found a setting that does not exist, expected one of library, "),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line_without_every_flag(
    words: list[str], capsys: pytest.CaptureFixture[str], wrong: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*words, *wrong])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pretrain fit: {expected}")


def test_a_wrong_setting_of_another_command_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--released", "x", "--dataset_dir", "x", "--out_dir", "x"]
    with pytest.raises(SystemExit):
        main(["embed", *given, "--batchsize", "3"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pretrain embed: batchsize: found a setting that does not exist")


def test_a_bad_value_names_the_setting(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = error_of([*words, "--model.encoders.id_dropout", "3"], capsys)
    assert "id_dropout in [0, 1]" in found


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        ("default_root_dir", "elsewhere", "run.dir"),
        ("logger", "false", "run.wandb"),
        ("enable_progress_bar", "false", "run.progress_bar"),
    ],
)
def test_a_setting_of_the_trainer_that_the_run_sets(
    words: list[str], name: str, value: str, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = error_of([*words, f"--trainer.{name}", value], capsys)
    given = "False" if value == "false" else value
    assert f"trainer.{name}: found {given}, expected null; set {ours}" in found


def test_a_dataset_without_its_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "half").mkdir()
    words = ["--run.dir", str(tmp_path / "run"), "--data.config.dataset_dir"]
    found = error_of([*TOY, *words, str(tmp_path / "half")], capsys)
    assert "manifest.json" in found
    assert "data_prep shard" in found


def test_a_tower_for_a_modality_that_the_dataset_lacks(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = error_of([*words, "--model.encoders.towers", '{"sound": {"library": "given"}}'], capsys)
    assert "sound" in found
    assert "['image', 'text']" in found


def test_features_that_are_not_there(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = error_of([*words, "--data.config.features_dir", str(tmp_path)], capsys)
    assert "run python -m pretrain features" in found


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no command 'train'" in error_of(["train"], capsys)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("fit", "features", "export", "embed", "evaluate"))


def test_help_of_fit_shows_the_docs_of_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert "Strength of the popularity correction" in " ".join(capsys.readouterr().out.split())


def test_a_folder_that_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config.json, so it is no released checkpoint"):
        load_released(tmp_path)


def test_a_release_of_another_version(tmp_path: Path) -> None:
    for name in ("model.safetensors", "id_map.parquet"):
        (tmp_path / name).touch()
    entry = {"format": "triptych-release", "version": 99}
    (tmp_path / "config.json").write_text(json.dumps(entry))
    with pytest.raises(ValueError, match=r"version \('triptych-release', 99\)"):
        load_released(tmp_path)


def test_a_dataset_of_another_schema(
    tmp_path: Path, toy_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(toy_dataset, tmp_path / "dataset")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    words = ["--run.dir", str(tmp_path / "run"), "--data.config.dataset_dir", str(folder)]
    assert "99" in error_of([*TOY, *words], capsys)
