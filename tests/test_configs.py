"""Every YAML file parses with the command it is for; there is no list to forget one in."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.__main__ import build_parser as data_prep_parser
from finetune.cli import build_parser as finetune_parser
from pretrain.cli import main as pretrain_main

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
OVERLAYS = [path for path in CONFIGS if path.parent.name == "configs"]


def parse_pretrain(*paths: Path) -> None:
    words = [word for path in paths for word in ("--config", str(path))]
    with pytest.raises(SystemExit) as stopped:
        pretrain_main(["fit", *words, "--run.dir", "unused", "--print_config"])
    assert stopped.value.code in (0, None)


def parse_data_prep(command: str, path: Path) -> None:
    data_prep_parser().parse_args([command, "--config", str(path)])


def parse_finetune(command: str, path: Path) -> None:
    finetune_parser().parse_args([command, "--config", str(path)])


PARSERS: dict[str, Callable[[Path], None]] = {
    "toy": lambda path: parse_data_prep("toy", path),
    "shard": lambda path: parse_data_prep("shard", path),
    "pretrain": parse_pretrain,
    "demo": parse_pretrain,
    "tuned": parse_pretrain,
    "finetune": lambda path: parse_finetune("fit", path),
    "ladder": lambda path: parse_finetune("ladder", path),
}


@pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if path not in OVERLAYS],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_a_config_parses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TRIPTYCH_DATA", "unused")
    PARSERS[path.stem](path)


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_parses_over_a_config(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parse_pretrain(ROOT / "configs/toy/pretrain.yaml", path)
