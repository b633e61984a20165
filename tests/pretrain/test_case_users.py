"""What `evaluate` gives a release of the users and times of its cases."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import pretrain.release
from pretrain.case_users import read_users
from pretrain.evaluate import evaluate
from pretrain.user_features import UserColumn, encode_users

ITEMS = [10, 20, 30, 40, 50]


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    eye = pa.FixedSizeListArray.from_arrays(pa.array(np.eye(5, dtype=np.float32).ravel()), 5)
    return write(tmp_path / "items.parquet", item_id=ITEMS, aligned=eye, event=eye, raw=eye)


class Listener:
    """A release that reads the user feature `age` and keeps what it is given."""

    fingerprint = "abc"
    newest_event = 249
    config = SimpleNamespace(user_columns=(UserColumn(name="age", kind="numeric"),))

    def __init__(self) -> None:
        self.ages: list[float | None] = []
        self.times: list[list[int]] = []

    def encode_histories(
        self,
        event: torch.Tensor,
        history: torch.Tensor,
        times: torch.Tensor,
        at: torch.Tensor,
        *,
        users: pa.Table | None = None,
    ) -> torch.Tensor:
        self.times += [
            [*row, moment] for row, moment in zip(times.tolist(), at.tolist(), strict=True)
        ]
        self.ages += [None] * len(history) if users is None else users["age"].to_pylist()
        return event[history[:, 0]]


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    found = Listener()
    monkeypatch.setattr(pretrain.release, "load_released", lambda path: found)
    return found


def dated_cases(path: Path) -> Path:
    return write(
        path / "dated.parquet",
        user_id=[7, 8, 9],
        history=[[10, 20], [30], [10]],
        history_times=[[100, 200], [300], [400]],
        at_time=[250, 350, 450],
        targets=[[30], [40], [50]],
    )


def test_a_release_is_given_each_users_features_and_the_times(
    tmp_path: Path, embedded: Path, listener: Listener
) -> None:
    users = write(tmp_path / "users.parquet", user_id=["9", "8", "1"], age=[90.0, 80.0, 10.0])
    evaluate(
        dated_cases(tmp_path), tmp_path / "m.json", vectors=[embedded], released=tmp_path,
        users=users, chunk=2,
    )  # fmt: skip
    assert listener.ages == [None, 80.0, 90.0]  # 7 is unknown; in the order of the cases
    assert listener.times == [[100, 200, 250], [300, 0, 350], [400, 0, 450]]


def test_without_users_the_release_is_given_none(
    tmp_path: Path, embedded: Path, listener: Listener
) -> None:
    evaluate(dated_cases(tmp_path), tmp_path / "m.json", vectors=[embedded], released=tmp_path)
    assert listener.ages == [None, None, None]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1, 2], "age": [1.0, 2.0]}, "found none of the users of"),
        ({"user_id": [7, 7], "age": [1.0, 2.0]}, "found 2 rows of 1 users"),
        ({"user_id": [7, 8]}, r"expected \['age'\] too"),
    ],
)
def test_users_that_cannot_be_those_of_the_cases_are_an_error(
    tmp_path: Path,
    embedded: Path,
    listener: Listener,
    columns: dict[str, list[float]],
    message: str,
) -> None:
    users = write(tmp_path / "users.parquet", **columns)
    with pytest.raises(ValueError, match=message):
        evaluate(
            dated_cases(tmp_path), tmp_path / "m.json", vectors=[embedded], released=tmp_path,
            users=users,
        )  # fmt: skip


def test_a_user_who_is_not_in_the_table_counts_as_unknown(tmp_path: Path) -> None:
    columns = (
        UserColumn(name="age", kind="numeric", mean=50, std=10),
        UserColumn(name="club", kind="categorical", values=("a", "b")),
    )
    users = write(tmp_path / "users.parquet", user_id=[8, 9], age=[80.0, None], club=["b", "new"])
    found = read_users(users, cases=dated_cases(tmp_path), columns=["age", "club"])
    encoded = torch.cat([encode_users(found.slice(start, 1), columns) for start in range(3)])
    np.testing.assert_array_equal(encoded, [[np.nan, 0], [3, 2], [np.nan, 0]])
