import dataclasses
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.__main__ import main
from data_prep.content import read_index
from data_prep.dataset import open_dataset
from data_prep.picture_sheet import choose_items
from data_prep.report import write_report
from data_prep.report_counts import (
    bytes_by_kind,
    count_events,
    count_impressions,
    share_of_top,
)
from data_prep.report_facts import collect_facts, open_columns
from data_prep.report_settings import ReportConfig
from data_prep.report_summary import percent, summary

if TYPE_CHECKING:
    from conftest import SmallWorld

SCRIPT = "<script>alert('1')</script>"


class Reader(HTMLParser):
    """The tags, links and visible text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(dataset_dir: Path, out: Path) -> str:
    write_report(ReportConfig(dataset_dir=dataset_dir, out=out))
    return out.read_text()


def num_sheet_pictures(page: str) -> int:
    return page[page.index("<h2>Popular items") :].count("<img ")


@pytest.fixture(scope="module")
def toy_page(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(toy_dataset, tmp_path_factory.mktemp("report") / "report.html")


def set_hashes(dataset_dir: Path, **columns: list[int | None]) -> None:
    """Give the items these content hashes, whatever they have."""
    path = dataset_dir / "items.parquet"
    items = pq.read_table(path)
    for name, values in columns.items():
        if name in items.column_names:
            items = items.drop_columns([name])
        items = items.append_column(name, pa.array(values, pa.uint64()))
    pq.write_table(items, path)


def test_the_page_is_one_small_file_without_script_or_outside_links(
    toy_page: str,
) -> None:
    reader = Reader(toy_page)
    assert "script" not in reader.tags
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in reader.links)
    assert "url(http" not in toy_page
    assert reader.tags.count("svg") == 4
    assert num_sheet_pictures(toy_page) == 40
    assert len(toy_page.encode()) < 5_000_000
    titles = ["Times and sizes", "Rows through each filter", "Missing content", "Popularity of",
              "Lengths of", "Events over time", "The CTR task", "Quarantine", "Popular items",
              "Cold items"]  # fmt: skip
    places = [toy_page.index(f"<h2>{title}") for title in titles]
    assert places == sorted(places)


def test_ids_texts_and_bad_values_show_as_text(small: "SmallWorld", tmp_path: Path) -> None:
    for table in (small.interactions, small.items):
        table["item_id"] = [f"{SCRIPT}{item}" for item in table["item_id"]]
    small.items["title"] = [SCRIPT] * 6
    small.interactions["user_id"] = [str(user) for user in small.interactions["user_id"]]
    small.add(f"<b>{SCRIPT}", "<i>unknown", small.interactions["timestamp"][0])
    folder = small.shard(name=SCRIPT)
    reader = Reader(page_of(folder, tmp_path / "report.html"))
    assert "script" not in reader.tags
    for shown in (f"{SCRIPT}100", f"<b>{SCRIPT}", "<i>unknown", f"{SCRIPT}: what the dataset"):
        assert shown in reader.text


UNKNOWN = 9_876_543_200
"""An item id whose digits stand in no fingerprint, path or time of a page."""


def test_quarantine_is_shown_by_cause_with_ten_samples_at_most(
    small: "SmallWorld", tmp_path: Path
) -> None:
    for number in range(12):
        small.add(10, UNKNOWN + number, small.interactions["timestamp"][0])
    small.add(10, None, small.interactions["timestamp"][0])
    small.items["image"] = [b"no picture", *small.items["image"].to_pylist()[1:]]
    page = page_of(small.shard(), tmp_path / "report.html")
    text = Reader(page).text
    assert "interactions/unknown_item: 12, 10 shown" in text
    assert "interactions/null_id: 1, 1 shown" in text
    assert "pictures/not_decodable: 1, 1 shown" in text
    assert [str(UNKNOWN + n) in text for n in range(12)] == [True] * 10 + [False] * 2
    content = page[page.index("pictures/not_decodable</b>: 1") :]
    assert "<th>item_id</th><th>item_row</th></tr><tr><th>105</th><td>5</td>" in content
    assert text.index("unknown_item: 12") < text.index("null_id: 1,")


def test_what_filters_left_out_is_summed_by_table(small: "SmallWorld") -> None:
    for column in small.interactions.values():
        column.append(column[0])
    small.add(10, 999, small.interactions["timestamp"][0])
    folder = small.shard()
    facts = collect_facts(open_columns(folder), ReportConfig(dataset_dir=folder))
    assert "Filters left out 2 of 42 interactions (4.8 %)." in summary(facts)


def test_duplicates_are_listed_largest_first(small: "SmallWorld", tmp_path: Path) -> None:
    folder = small.shard()
    set_hashes(
        folder,
        hash_image=[1, 1, None, 3, 4, 5],
        hash_text=[7, 7, 8, None, 8, 8],
        phash_image=[0, 0, None, 0b1111, 0b111111, (1 << 60) - 1],
    )
    page = page_of(folder, tmp_path / "report.html")
    assert "2 items in one group, so 1 to spare" in page[page.index("same image") :]
    text = page[page.index("with the same text") : page.index("look alike</h2>")]
    assert text.index("3 items") < text.index("2 items</h3>")
    near = page[page.index("look alike</h2>") : page.index("<h2>Popular items")]
    assert "4 items in one group" in near
    assert near.count('<div class="card">') == 4


def test_cold_items_with_the_content_of_a_warm_one_are_counted(toy_dataset: Path) -> None:
    config = ReportConfig(dataset_dir=toy_dataset)
    dataset = open_columns(toy_dataset)
    cold = dataset.items["train_count"].to_numpy() == 0
    hashes = np.arange(dataset.num_items, dtype=np.uint64) + 10
    hashes[np.flatnonzero(cold)[:3]] = hashes[np.flatnonzero(~cold)[:3]]
    hashes[np.flatnonzero(cold)[3:5]] = 1
    items = dataset.items.select(
        [name for name in dataset.items.column_names if "hash" not in name]
    ).append_column("hash_image", pa.array(hashes))
    facts = collect_facts(dataclasses.replace(dataset, items=items), config)
    assert list(facts.copies) == ["image"]
    assert facts.copies["image"].num_cold_of_warm == 3
    assert facts.copies["image"].groups.num_items == 8
    assert facts.near is None


def test_events_by_split_are_those_of_a_loop_over_the_log(toy_dataset: Path) -> None:
    dataset = open_dataset(toy_dataset)
    log, cutoffs = dataset.events(), dataset.manifest.cutoffs
    cold = dataset.items["train_count"].to_numpy() == 0
    facts = count_events(log, cutoffs, is_cold_I=cold)
    by_user = list(zip(log.user_rows().tolist(), log.item_rows, log.times, strict=True))
    history = {user for user, _, time in by_user if time < cutoffs.valid_start}
    bounds = {"train": (0, cutoffs.valid_start), "valid": (cutoffs.valid_start, cutoffs.test_start),
              "test": (cutoffs.test_start, 2**62)}  # fmt: skip
    for split, (first, last) in bounds.items():
        rows = [row for row in by_user if first <= row[2] < last]
        counts = facts.splits[split]
        assert counts.num_events == len(rows) == dataset.manifest.counts[f"{split}_events"]
        assert counts.num_users == len({user for user, _, _ in rows})
        assert counts.num_items == len({item for _, item, _ in rows})
        assert counts.num_cold == sum(bool(cold[item]) for _, item, _ in rows)
        assert counts.num_without_history == sum(user not in history for user, _, _ in rows)
        assert counts.timeline_T.sum() == len(rows)
    lengths = np.bincount([u for u, _, t in by_user if t < cutoffs.valid_start],
                          minlength=dataset.num_users)  # fmt: skip
    assert facts.history_lengths_U.tolist() == lengths.tolist()


def test_impressions_by_split_are_those_of_the_whole_table(toy_dataset: Path) -> None:
    dataset = open_dataset(toy_dataset)
    cold = dataset.items["train_count"].to_numpy() == 0
    facts = count_impressions(dataset, is_cold_I=cold)
    assert facts is not None
    for split, counts in facts.splits.items():
        table = dataset.impressions(split)
        click, items = table["label"].to_numpy() == 1, table["item_row"].to_numpy()
        assert (counts.num_shown, counts.num_clicks) == (len(items), click.sum())
        assert counts.num_cold == cold[items].sum()
        assert counts.num_cold_clicks == (cold[items] & click).sum()
        assert counts.num_items == len(np.unique(items))
        assert (counts.shown_T.sum(), counts.clicks_T.sum()) == (len(items), click.sum())


def test_bytes_by_kind_add_up_to_the_files(toy_dataset: Path) -> None:
    dataset = open_dataset(toy_dataset)
    kinds = bytes_by_kind(dataset)
    assert sum(kinds.values()) == sum(file.bytes for file in dataset.manifest.files)
    records = [dataset.content().read(row) for row in range(dataset.num_items)]
    assert kinds["pictures"] == sum(len(record.image or b"") for record in records)


def test_the_share_of_the_top_is_that_of_a_sorted_list() -> None:
    counts = np.random.default_rng(0).permutation(np.arange(200))
    assert share_of_top(counts, 0.1) == sum(range(180, 200)) / sum(range(200))
    assert share_of_top(np.array([3, 1]), 0.01) == 0.75


@pytest.mark.parametrize(("num_cold", "expected"), [(50, (20, 20)), (5, (35, 5)), (0, (40, 0))])
def test_the_sheet_is_half_popular_half_cold_as_far_as_there_are(
    num_cold: int, expected: tuple[int, int]
) -> None:
    counts = np.concatenate([np.zeros(num_cold, np.int64), np.arange(1, 1001)])
    eligible = np.ones(len(counts), bool)
    popular, cold = choose_items(counts, eligible, size=40, seed=3)
    assert (len(popular), len(cold)) == expected
    assert counts[popular].min() > 900
    assert (counts[cold] == 0).all()
    again = choose_items(counts, eligible, size=40, seed=3)
    assert (again[0].tolist(), again[1].tolist()) == (popular.tolist(), cold.tolist())


def test_shares_are_not_rounded_to_none_or_all() -> None:
    assert [percent(part, 10_000) for part in (0, 1, 500, 9_999, 10_000)] == [
        *("0.0 %", "< 0.1 %", "5.0 %", "> 99.9 %", "100.0 %")
    ]
    assert percent(0, 0) == "none"


def test_a_damaged_picture_is_a_card_that_says_so(small: "SmallWorld", tmp_path: Path) -> None:
    folder = small.shard()
    (member,) = (
        row
        for row in read_index(folder / "items/items-000000.index.arrow").to_pylist()
        if (row["item_row"], row["member"]) == (0, "jpg")
    )
    with (folder / "items/items-000000.tar").open("r+b") as tar:
        tar.seek(member["offset"])
        tar.write(b"x" * member["size"])
    reader = Reader(page_of(folder, tmp_path / "report.html"))
    assert "cannot be decoded" in reader.text
    assert "zero" in reader.text


def test_without_content_impressions_and_hashes_the_page_says_so(
    small: "SmallWorld", tmp_path: Path
) -> None:
    items = dataclasses.replace(small.config().items, image=None, texts=[])
    folder = small.shard(items=items)
    path = folder / "items.parquet"
    table = pq.read_table(path)
    pq.write_table(table.select([n for n in table.column_names if "hash" not in n]), path)
    text = Reader(page_of(folder, tmp_path / "report.html")).text
    assert "maps no content" in text
    assert "has no impressions" in text
    assert "has no content hashes" in text


def test_the_first_frame_stands_for_an_item_without_a_picture(
    small: "SmallWorld", tmp_path: Path, make_jpeg: Callable[..., bytes]
) -> None:
    small.items["frames"] = pa.array([[make_jpeg()]] * 5 + [None], pa.list_(pa.binary()))
    items = dataclasses.replace(small.config().items, image=None, frames="frames")
    page = page_of(small.shard(items=items), tmp_path / "report.html")
    assert num_sheet_pictures(page) == 5


def test_a_dataset_behind_a_url_gives_the_same_page(
    toy_page: str, toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").put(str(toy_dataset), "/report", recursive=True)
    url = Path("memory://report")
    assert page_of(url, tmp_path / "report.html") == toy_page
    with pytest.raises(ValueError, match="give one"):
        ReportConfig(dataset_dir=url)


def test_the_command_writes_beside_the_dataset_and_prints_ten_lines(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "dataset"
    shutil.copytree(toy_dataset, folder)
    assert main(["report", "--dataset_dir", str(folder), "--num_pictures", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 8 <= len(lines) <= 12
    assert lines[0].startswith("240 items, 150 users and ")
    assert lines[-1] == f"written to {folder / 'report.html'}"
    assert num_sheet_pictures((folder / "report.html").read_text()) == 6
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda folder: ["--dataset_dir", str(folder / "nowhere")], "no such folder"),
        (lambda folder: ["--dataset_dir", str(folder), "--out", str(folder)], "add a name"),
        (lambda folder: ["--dataset_dir", str(folder), "--num_pictures", "-1"], "0 or more"),
    ],
)
def test_a_bad_setting_is_one_line(
    arguments: Callable[[Path], list[str]],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["report", *arguments(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_the_page_is_the_same_twice(toy_page: str, toy_dataset: Path, tmp_path: Path) -> None:
    assert page_of(toy_dataset, tmp_path / "again.html") == toy_page


def test_the_manifest_is_shown(toy_page: str, toy_dataset: Path) -> None:
    text = Reader(toy_page).text
    manifest = json.loads((toy_dataset / "manifest.json").read_text())
    assert manifest["source_fingerprint"][:16] in text
    for count in manifest["counts"].values():
        assert f"{count:,}" in text
