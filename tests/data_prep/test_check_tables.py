"""Raw tables are looked at before a dataset makes way for them."""

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.columns import ImpressionColumns, InteractionColumns, UserColumns
from data_prep.dataset import open_dataset
from data_prep.privacy_settings import PrivacyConfig
from data_prep.verify import find_damage

if TYPE_CHECKING:
    from conftest import SmallWorld


@pytest.mark.parametrize(
    ("setting", "changes", "message"),
    [
        ("items", {"texts": ["titel"]}, "found no column 'titel' (columns: item_id, title"),
        ("items", {"features": {"title": "numeric"}}, "'title' holds string, expected something"),
        ("users", {"user": "id"}, "found no column 'id' (columns: user_id, age); correct users"),
        ("users", {"features": {"aeg": "numeric"}}, "found no column 'aeg'"),
        ("users", {"path": "nowhere.csv"}, "found no such file, expected users"),
        ("interactions", {"time": "time"}, "found no column 'time'"),
        ("interactions", {"item": "word"}, "'word' holds string, but the catalogue's item ids are"),
        ("impressions", {"label": "click"}, "found no column 'click'"),
        ("impressions", {"labels": {"word": "numeric"}}, "'word' holds string, expected numbers"),
    ],
)
def test_a_wrong_column_leaves_the_dataset_of_before(
    small: "SmallWorld", tmp_path: Path, setting: str, changes: dict[str, Any], message: str
) -> None:
    small.interactions["word"] = ["a"] * 40
    pq.write_table(pa.table({"user_id": [10, 20], "age": [3.0, None]}), tmp_path / "users.parquet")
    shown = pa.table(small.interactions | {"label": [1, 0] * 20})
    pq.write_table(shown, tmp_path / "shown.parquet")
    settings = {
        "items": small.config().items,
        "interactions": small.config().interactions,
        "users": UserColumns(path=str(tmp_path / "users.parquet"), features={"age": "numeric"}),
        "impressions": ImpressionColumns(path=str(tmp_path / "shown.parquet"), time_unit="s"),
    }
    folder = small.shard(**settings)
    fingerprint = open_dataset(folder).manifest.source_fingerprint
    settings[setting] = dataclasses.replace(settings[setting], **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        small.shard(**settings)
    assert list(find_damage(folder)) == []
    assert open_dataset(folder).manifest.source_fingerprint == fingerprint


def test_hashed_ids_may_be_of_two_types(
    small: "SmallWorld", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIPTYCH_ID_KEY", "a key of sixteen bytes and more")
    small.interactions["item_id"] = [str(item) for item in small.interactions["item_id"]]
    dataset = open_dataset(small.shard(privacy=PrivacyConfig(hash_ids=["item"])))
    assert dataset.manifest.counts["events"] == 40


def test_a_first_row_that_cannot_be_read_is_one_line(small: "SmallWorld", tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log/a.csv").write_text("user_id,item_id,timestamp\n")
    (tmp_path / "log/b.csv").write_text("user_id,item_id,timestamp\n10,100,1735689600,7\n")
    log = InteractionColumns(path=str(tmp_path / "log"), time_unit="s")
    message = r"small: the raw tables cannot be read \(\S*b\.csv: .*Columns: 3 Found: 4\); correct"
    with pytest.raises(ValueError, match=message):
        small.shard(interactions=log)
