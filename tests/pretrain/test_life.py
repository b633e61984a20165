"""Two lives of one run: the later one goes on, the earlier one leaves its files alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pretrain.checkpoint_files import step_folders
from pretrain.checkpoint_policy import KeepConfig
from pretrain.checkpoints import Checkpoints
from pretrain.life import LIFE_FILE, Life, Superseded
from pretrain.stop import StopOnSignal


class Small(pl.LightningModule):
    def __init__(self, *, at_step: int | None, other: Life) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)
        self.at_step, self.other = at_step, other

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == self.at_step:
            self.other.begin()
        loss: Tensor = self.net(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(run_dir: Path, *, at_step: int | None = None, life: Life | None = None) -> None:
    """Four steps with a save after each; another life begins in step `at_step`."""
    checkpoints = Checkpoints(
        run_dir / "checkpoints",
        keep=KeepConfig(),
        monitor=None,
        every_steps=1,
        asynchronous=False,
        life=life or Life(run_dir),
    )
    callbacks: list[Any] = [StopOnSignal(checkpoints), checkpoints]
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=callbacks, logger=False,
        default_root_dir=run_dir, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(
        Small(at_step=at_step, other=Life(run_dir)), DataLoader([torch.ones(2, 3)] * 4, None)
    )


def test_an_earlier_life_saves_nothing_more(tmp_path: Path) -> None:
    with pytest.raises(Superseded, match=r"life\.json: another life of this run began at"):
        fit(tmp_path, at_step=2)
    assert step_folders(tmp_path / "checkpoints")[0].name == "step-2"
    assert not list((tmp_path / "checkpoints").glob("*.partial"))
    assert not (tmp_path / "DONE").exists()


def test_the_later_life_goes_on(tmp_path: Path) -> None:
    Life(tmp_path).begin()
    fit(tmp_path)
    assert (tmp_path / "DONE").exists()


def test_a_run_that_ends_after_another_has_begun_does_not_say_it_is_done(tmp_path: Path) -> None:
    class Late(Life):
        """Another life begins after the last save, before the end is told."""

        def check(self) -> None:
            if (tmp_path / "checkpoints" / "step-4").exists():
                Life(tmp_path).begin()
            super().check()

    with pytest.raises(Superseded):
        fit(tmp_path, life=Late(tmp_path))
    assert not (tmp_path / "DONE").exists()


def test_what_is_left_of_an_earlier_restart_does_not_take_the_run_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    Life(tmp_path).begin()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(Superseded, match="found restart 2 of job 7, this is restart 1"):
        Life(tmp_path).begin()
    assert json.loads((tmp_path / LIFE_FILE).read_text())["slurm_restarts"] == 2
    monkeypatch.setenv("SLURM_JOB_ID", "8")  # another job: submitted again, on purpose
    Life(tmp_path).begin()


def test_a_mark_that_cannot_be_read_holds_nobody_up(tmp_path: Path) -> None:
    life = Life(tmp_path)
    (tmp_path / LIFE_FILE).write_text("{")
    life.begin()
    life.check()
    (tmp_path / LIFE_FILE).unlink()
    life.check()
