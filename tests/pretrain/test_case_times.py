"""What has seen the time that is asked about is refused, or recorded where it is allowed."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pretrain.release
from pretrain.blend import blend
from pretrain.blend_samples import Question
from pretrain.blend_signals import SignalConfig
from pretrain.case_times import TimestampUnit, newest_choice
from pretrain.evaluate import evaluate
from pretrain.system_figures import read_protocols

ITEMS = [10, 20, 30, 40]


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def asked(path: Path, *, at: int) -> Path:
    return write(
        path, user_id=[1], history=[[10]], history_times=[[500]], at_time=[at], targets=[[20]]
    )


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """The newest choice, in seconds, is the target itself."""
    return write(
        tmp_path / "train.parquet",
        user_id=[1, 1, 2, 2],
        item_id=[10, 20, 30, 40],
        timestamp=[5, 9, 1, 2],
    )


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    eye = pa.FixedSizeListArray.from_arrays(pa.array(np.eye(4, dtype=np.float32).ravel()), 4)
    return write(tmp_path / "items.parquet", item_id=ITEMS, aligned=eye, event=eye, raw=eye)


def test_a_log_that_holds_what_is_asked_is_refused(tmp_path: Path, train: Path) -> None:
    cases, out = asked(tmp_path / "cases.parquet", at=9000), tmp_path / "m.json"
    with pytest.raises(ValueError, match=r"train of 9000 ms, expected it before 9000 ms.*cases"):
        evaluate(cases, out, train=train, timestamp_unit="s")
    assert not out.exists()
    later = asked(tmp_path / "cases.parquet", at=9001)
    found = evaluate(later, out, train=train, timestamp_unit="s")["about"]["catalogue"]["times"]
    assert found == {
        "first_asked": 9001,
        "last_asked": 9001,
        "newest_event": {"train": 9000},
        "look_ahead": [],
    }


def test_an_override_is_recorded_and_reported(tmp_path: Path, train: Path) -> None:
    cases, out = asked(tmp_path / "cases.parquet", at=9000), tmp_path / "m.json"
    evaluate(cases, out, train=train, timestamp_unit="s", allow_look_ahead=True)
    about = json.loads(out.read_text())["about"]["catalogue"]
    assert about["times"]["look_ahead"] == ["train"]
    (note,) = read_protocols([out])[0].notes
    assert "train had seen the time that is asked about" in note


def test_a_release_that_has_seen_the_time_asked_about_is_refused(
    tmp_path: Path, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = SimpleNamespace(fingerprint="abc", newest_event=9000)
    monkeypatch.setattr(pretrain.release, "load_released", lambda path: release)
    cases, out = asked(tmp_path / "cases.parquet", at=9000), tmp_path / "m.json"
    with pytest.raises(ValueError, match="released of 9000 ms"):
        evaluate(cases, out, vectors=[vectors], released=tmp_path)
    write(tmp_path / "train.parquet", user_id=[1], item_id=[10])
    question = Question(cases=cases, train=tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="released of 9000 ms"):
        blend([question], tmp_path / "b.json", vectors=[vectors], released=tmp_path)


def test_cases_without_times_need_no_unit(tmp_path: Path, train: Path) -> None:
    cases = write(tmp_path / "c.parquet", user_id=[1], history=[[10]], targets=[[20]])
    found = evaluate(cases, tmp_path / "m.json", train=train)["about"]["catalogue"]["times"]
    assert found["first_asked"] is None


def test_a_blend_that_was_learnt_on_the_cases_or_later_ones_is_refused(
    tmp_path: Path, vectors: Path
) -> None:
    train = write(
        tmp_path / "train.parquet",
        user_id=[1, 2, 2, 3],
        item_id=[10, 10, 20, 30],
        timestamp=[1, 2, 3, 4],
    )
    learnt_on, out = asked(tmp_path / "valid.parquet", at=9000), tmp_path / "blend.json"
    question = Question(cases=learnt_on, train=train)
    words: dict[str, Any] = {"vectors": [vectors], "signals": SignalConfig(ease_l2=1.0)}
    with pytest.raises(ValueError, match="timestamp_unit 'auto', expected s, ms or us"):
        blend([question], out, **words)
    blend([question], out, **words, timestamp_unit="s")
    written = json.loads(out.read_text())
    assert written["newest_event"] == 9000  # the time of its own target
    assert written["about"]["times"] == [
        {
            "first_asked": 9000,
            "last_asked": 9000,
            "newest_event": {"train": 4000},
            "look_ahead": [],
        }
    ]
    inputs: dict[str, Any] = {"train": train, "vectors": [vectors], "timestamp_unit": "s"}
    with pytest.raises(ValueError, match="blend of 9000 ms"):
        evaluate(learnt_on, tmp_path / "m.json", blend=out, **inputs)
    later = asked(tmp_path / "test.parquet", at=9001)
    found = evaluate(later, tmp_path / "m.json", blend=out, **inputs)
    assert "ours_blended" in found["catalogue"]
    with pytest.raises(ValueError, match="train of 4000 ms, expected it before 4000 ms"):
        blend(
            [Question(cases=asked(learnt_on, at=4000), train=train)], out, **words,
            timestamp_unit="s",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("times", "unit", "expected"),
    [
        ([3, None, 7], "s", 7_000),
        ([1.5], "s", 1_500),
        ([7], "ms", 7),
        ([7_999], "us", 7),
        ([datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC)], "auto", 2_000),
        ([date(1970, 1, 2)], "auto", 2 * 86_400_000 - 1),  # at any time of that day
        (pa.array([None], pa.int64()), "s", None),
        (pa.array([2_000_000_000], pa.timestamp("ns")), "auto", 2_000),
    ],
)
def test_the_newest_choice_in_milliseconds(
    tmp_path: Path, times: object, unit: TimestampUnit, expected: int | None
) -> None:
    assert newest_choice(write(tmp_path / "t.parquet", timestamp=times), unit=unit) == expected


@pytest.mark.parametrize(
    ("times", "unit", "message"),
    [
        ([3], "auto", "expected s, ms or us for numbers"),
        ([date(1970, 1, 2)], "s", "expected auto"),
        (["today"], "auto", "type string, expected numbers, timestamps or dates"),
    ],
)
def test_a_unit_that_does_not_fit_is_refused(
    tmp_path: Path, times: object, unit: TimestampUnit, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        newest_choice(write(tmp_path / "t.parquet", timestamp=times), unit=unit)
