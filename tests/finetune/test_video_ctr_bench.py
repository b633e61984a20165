"""The tables of video-ctr, from a few rows made by hand."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest

BENCH = Path(__file__).parents[1] / "bench"
MIDNIGHT_MS = 1_651_420_800_000  # 2022-05-02 begins, in the zone of the log


@pytest.fixture
def video_ctr(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("video_ctr")
    sys.modules.pop("video_ctr", None)


def test_a_time_lies_inside_its_date(video_ctr: ModuleType) -> None:
    midnight = MIDNIGHT_MS // 1000
    shown = pa.table(
        {
            "date": [20220501, 20220501, 20220502, 20220502],
            "timestamp": [midnight - 5, midnight + 60, midnight - 60, midnight + 7],
        }
    )
    assert video_ctr.time_of(shown).tolist() == [
        MIDNIGHT_MS - 5000,
        MIDNIGHT_MS - 1,
        MIDNIGHT_MS,
        MIDNIGHT_MS + 7000,
    ]


def test_a_history_becomes_events_in_its_order_that_end_at_its_last_time(
    video_ctr: ModuleType,
) -> None:
    watched = pa.table(
        {
            "user_id": pa.array([7, 8, 9], pa.int32()),
            "last_time_ms": [1000, 2000, 3000],
            "watch_seq": pa.array([[4, 5, 4], [], [6]], pa.list_(pa.int32())),
        }
    )
    events = video_ctr.history_events(watched)
    assert events["user_id"].to_pylist() == [7, 7, 7, 9]
    assert events["item_id"].to_pylist() == [4, 5, 4, 6]
    assert events["time_ms"].to_pylist() == [998, 999, 1000, 3000]
    assert events["label"].to_pylist() == [1, 1, 1, 1]


def test_users_have_their_likes_latest_first_and_unknown_users_none(video_ctr: ModuleType) -> None:
    lists = pa.list_(pa.int32())
    watched = pa.table(
        {
            "user_id": pa.array([8, 7], pa.int32()),
            "like_seq": pa.array([[1, 2], []], lists),
            "long_watch_seq": pa.array([[3], [4, 5]], lists),
        }
    )
    found = video_ctr.users(pa.table({"user_id": [7, 8, 9]}), watched)
    assert found["liked"].to_pylist() == [[], [2, 1], None]
    assert found["long_watched"].to_pylist() == [[5, 4], [3], None]
