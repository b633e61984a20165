"""Checkpoints as files: whole or not there, refused when damaged, kept by policy."""

import errno
import importlib
import logging
import os
import resource
from datetime import date
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint_choice import choose_checkpoint, find_checkpoint, has_checkpoints
from pretrain.checkpoint_files import (
    STATE_FILE,
    DamagedCheckpoint,
    FileSum,
    Manifest,
    check_files,
    folder_of,
    put_in_place,
    read_manifest,
    remove_left_overs,
    save_state,
    set_aside,
    step_folders,
    sum_of,
)
from pretrain.checkpoint_policy import (
    KeepConfig,
    Saved,
    Validation,
    kept_steps,
    read_validation,
    write_validation,
)
from pretrain.export import read_weights

STATE = {"state_dict": {"model.weight": torch.arange(3000.0)}, "loops": {"epoch": 1}}


def make_checkpoint(checkpoints: Path, step: int, *names: str) -> Path:
    """A whole one, with a state of its own in every file."""
    partial = checkpoints / f"step-{step}.partial"
    sums = {
        name: save_state(STATE | {"step": step, "name": name}, partial / name)
        for name in names or (STATE_FILE,)
    }
    manifest = Manifest(
        step=step, epoch=0, batches=step, epoch_done=False, ranks=1, layout="whole",
        written=1e9 + step, versions={"torch": "2"}, files=sums,
    )  # fmt: skip
    return put_in_place(partial, manifest)


def test_a_manifest_survives_json_and_says_when_it_was_altered(tmp_path: Path) -> None:
    manifest = read_manifest(make_checkpoint(tmp_path, 3))
    assert Manifest.from_json(manifest.to_json()) == manifest
    altered = manifest.to_json().replace('"ranks": 1', '"ranks": 2')
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint\.json was altered"):
        Manifest.from_json(altered)


def test_what_is_written_is_read_again_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = save_state(STATE, tmp_path / "a.ckpt")
    assert found == sum_of(tmp_path / "a.ckpt")
    assert found.size == (tmp_path / "a.ckpt").stat().st_size
    wrong = FileSum(found.size, "0")
    monkeypatch.setattr("pretrain.checkpoint_files.sum_of", lambda path: wrong)
    with pytest.raises(OSError, match=r"a\.ckpt: wrote .* and read"):
        save_state(STATE, tmp_path / "a.ckpt")


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """As by a quota: the file may not grow any further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            save_state({"weight": torch.zeros(1 << 20)}, tmp_path / "a.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_is_a_checkpoint_only_once_it_is_whole(tmp_path: Path) -> None:
    save_state(STATE, tmp_path / "step-9.partial" / STATE_FILE)
    make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 8)
    for left in ("step-4.removed", "step-10.universal.partial", "step-8.validation.json.tmp"):
        (tmp_path / left).mkdir()
    (tmp_path / "step-4.validation.json").write_text("{}")
    assert [path.name for path in step_folders(tmp_path)] == ["step-10", "step-8"]
    remove_left_overs(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-8"]


def test_a_damaged_one_is_named_renamed_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (3, 6):
        make_checkpoint(tmp_path, step)
    file = tmp_path / "step-6" / STATE_FILE
    file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level(logging.ERROR):
        assert choose_checkpoint(tmp_path, layout="whole") == tmp_path / "step-3"
    assert "step-6: DAMAGED, state.ckpt has" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-6.damaged-1"]
    make_checkpoint(tmp_path, 6)
    assert set_aside(tmp_path / "step-6").name == "step-6.damaged-2"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 3)
    (tmp_path / "step-3" / STATE_FILE).unlink()
    for _ in range(2):  # the second start too
        with pytest.raises(ValueError, match=r"no checkpoint is whole \(step-3: state\.ckpt is"):
            choose_checkpoint(tmp_path, layout="whole")


def test_another_strategy_and_an_earlier_version_are_refused(tmp_path: Path) -> None:
    assert not has_checkpoints(tmp_path)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"last\.ckpt: is of an earlier version"):
        has_checkpoints(tmp_path)
    make_checkpoint(tmp_path, 3)
    assert has_checkpoints(tmp_path)
    with pytest.raises(ValueError, match="was saved under whole, this run is zero-2"):
        choose_checkpoint(tmp_path, layout="zero-2")


# ---------------------------------------------------------------------- policy
def saved(*scores: float | None, hours: float = 1.0) -> list[Saved]:
    return [Saved(step, 3600 * hours * step, score) for step, score in enumerate(scores)]


def test_the_last_the_best_and_one_every_so_many_hours_are_kept() -> None:
    found = saved(0.1, 0.4, None, 0.4, float("nan"), 0.2)
    assert kept_steps(found, KeepConfig(last=1, best=0)) == {5}
    assert kept_steps(found, KeepConfig(last=2)) == {1, 4, 5}  # of equal ones the earliest
    assert kept_steps(found, KeepConfig(last=1, best=2)) == {1, 3, 5}
    assert kept_steps(found, KeepConfig(last=1, best=0, every_hours=2)) == {0, 2, 4, 5}


def test_what_is_kept_for_its_age_stays_so() -> None:
    found = saved(*[None] * 40, hours=0.3)
    keep, folder = KeepConfig(last=2, every_hours=1.0), []
    for one in found:  # as a run does, one after the other
        folder = [it for it in [*folder, one] if it.step in kept_steps([*folder, one], keep)]
    assert {one.step for one in folder} == kept_steps(found, keep)
    with pytest.raises(ValueError, match=r"every_hours must be positive, got -1"):
        KeepConfig(every_hours=-1)


def test_the_best_is_found_by_the_notes_of_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step, score in ((2, 0.3), (4, 0.5), (6, 0.4)):
        note = Validation(monitor="val/x", metrics={"val/x": score, "val/y": -score})
        write_validation(make_checkpoint(checkpoints, step), note)
    assert find_checkpoint(tmp_path, which="best") == checkpoints / "step-4"
    assert find_checkpoint(tmp_path, which="last") == checkpoints / "step-6"
    file = checkpoints / "step-6.validation.json"
    for damaged in ("[1]", "", file.read_text().replace("0.4", "0.9")):
        file.write_text(damaged)
        assert read_validation(checkpoints / "step-6") is None
    (checkpoints / "step-4" / STATE_FILE).write_bytes(b"")
    assert find_checkpoint(tmp_path, which="best") == checkpoints / "step-2"
    assert "step-4: DAMAGED" in caplog.text
    with pytest.raises(ValueError, match="found 'lst', expected best or last"):
        find_checkpoint(tmp_path, which="lst")


# ---------------------------------------------------------------------- mutations


def test_objects_of_a_class_are_neither_saved_nor_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even under a true hash."""
    monkeypatch.chdir(tmp_path)
    evil = importlib.import_module("checkpoint_mutations").Evil()
    partial = tmp_path / "step-1.partial"
    with pytest.raises(ValueError, match=r"holds posix\.system, expected tensors and plain data"):
        save_state({"state_dict": evil}, partial / STATE_FILE)
    manifest = Manifest(
        step=1, epoch=0, batches=1, epoch_done=False, ranks=1, layout="whole", written=0.0,
        versions={}, files={STATE_FILE: sum_of(partial / STATE_FILE)},
    )  # fmt: skip
    folder = put_in_place(partial, manifest)
    check_files(folder, read_manifest(folder))
    with pytest.raises(DamagedCheckpoint, match="more than tensors and plain data, and is not"):
        read_weights(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("count", "seed"), [(100, None), pytest.param(1000, 0, marks=pytest.mark.slow)]
)
def test_mutated_checkpoints_are_refused_or_loaded_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, seed: int | None
) -> None:
    """Bytes flipped, files cut, removed and swapped, JSON altered, code added; another each day."""
    monkeypatch.chdir(tmp_path)
    mutations = importlib.import_module("checkpoint_mutations")
    for step in (1, 2):
        make_checkpoint(tmp_path / "checkpoints", step)
    seed = date.today().toordinal() if seed is None else seed
    outcome = mutations.run_mutations(tmp_path / "checkpoints", count=count, seed=seed)
    assert sum(outcome.values()) == count
    assert outcome["fallen_back"] > 0.8 * count
    assert not (tmp_path / mutations.RAN).exists()


def test_a_step_has_one_folder(tmp_path: Path) -> None:
    assert folder_of(tmp_path, 12).name == "step-12"
    make_checkpoint(tmp_path, 12)
    (tmp_path / "step-12" / "old").touch()
    make_checkpoint(tmp_path, 12)  # taken again, after a fall back
    assert not (tmp_path / "step-12" / "old").exists()
    assert read_manifest(tmp_path / "step-12").step == 12
