"""Nothing that is read runs code, and nothing that is saved holds a secret."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from data_prep.__main__ import main as data_prep_main
from data_prep.folders import open_folder
from data_prep.settings import ShardConfig
from data_prep.work import source_fingerprint
from finetune.cli import main as finetune_main
from finetune.run_folder import read_config, write_config
from finetune.settings import FitConfig
from pretrain.cli import main as pretrain_main
from pretrain.towers import TowerConfig, build_backbone

EVIL = "from pathlib import Path\nPath('trap').write_text('run')\n"


def exit_code(main: Callable[[list[str]], int | None], words: list[str]) -> int:
    try:
        return main(words) or 0
    except SystemExit as stopped:
        return int(stopped.code or 0)


@pytest.mark.parametrize(
    ("main", "command"),
    [(data_prep_main, "shard"), (pretrain_main, "fit"), (finetune_main, "fit")],
    ids=["data_prep", "pretrain", "finetune"],
)
def test_a_yaml_file_cannot_make_objects(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    main: Callable[[list[str]], int | None],
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.yaml").write_text("name: !!python/object/apply:os.system ['touch trap']\n")
    assert exit_code(main, [command, "--config", "evil.yaml"]) == 2
    assert not Path("trap").exists()


def test_a_model_that_brings_code_is_refused_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "evil"
    folder.mkdir()
    code = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil"} | code))
    (folder / "evil.py").write_text(EVIL)

    def asked(*_: object) -> str:
        raise AssertionError("the user was asked whether to run it")

    monkeypatch.setattr("builtins.input", asked)
    for weights in ("random", "pretrained"):
        tower = TowerConfig(library="transformers", name=str(folder), weights=weights)
        with pytest.raises(ValueError, match="evil"):
            build_backbone("text", tower)
    assert not Path("trap").exists()


SECRET = "s3://key:hunter2@bucket/data"


def test_a_saved_finetune_config_holds_no_credentials_and_says_so_when_it_is_used(
    tmp_path: Path,
) -> None:
    write_config(FitConfig(dataset_dir=Path(SECRET), out_dir=tmp_path / "run"), tmp_path)
    assert "hunter2" not in (tmp_path / "config.yaml").read_text()
    with pytest.raises(ValueError, match="credentials are never saved; give dataset_dir again"):
        open_folder(read_config(tmp_path).dataset_dir)


def test_a_saved_pretrain_config_holds_no_credentials(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain.cli import parse_run

    monkeypatch.chdir(Path(__file__).parents[1])
    words = ["--config", "configs/toy/pretrain.yaml", "--run.dir", str(tmp_path), "--run.wandb"]
    words += ["off", "--data.config.dataset_dir", SECRET, "--trainer.accelerator", "cpu"]
    cli = parse_run(words, command="fit")
    (saves,) = [one for one in cli.trainer.callbacks if type(one).__name__ == "SaveConfig"]
    saves.setup(cli.trainer, cli.model, "fit")
    saved = (tmp_path / "config.yaml").read_text()
    assert "hunter2" not in saved
    assert yaml.safe_load(saved)["model"]["encoders"]["width"] == 64
    assert yaml.safe_load(saved)["data"]["config"]["dataset_dir"] == "s3:/***@bucket/data"


@pytest.mark.parametrize(("words", "hidden"), [([SECRET], True), (["--x", "s3://bucket"], False)])
def test_wandb_keeps_no_command_line_with_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], *, hidden: bool
) -> None:
    from pretrain.run import RunConfig

    monkeypatch.setattr(sys, "argv", ["pretrain", *words])
    wandb = RunConfig(dir=tmp_path).loggers()[1]
    assert wandb._wandb_init["settings"]["x_disable_meta"] is hidden


def test_new_credentials_make_no_other_dataset(toy_config: ShardConfig) -> None:
    import dataclasses

    def made(token: str) -> str:
        items = dataclasses.replace(toy_config.items, image_dir=f"https://host/?token={token}")
        return source_fingerprint(dataclasses.replace(toy_config, items=items))

    assert made("one") == made("two")
