import dataclasses
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data_prep.dataset import Dataset
from finetune.content_settings import ContentConfig
from finetune.ladder import ladder, run_configs, rungs_of
from finetune.report import report
from finetune.settings import FitConfig, LadderConfig, ReportConfig

from .conftest import FakeRelease

RUNGS = ("none", "noise", "raw", "aligned")


@pytest.fixture
def ladder_config(fit_config: FitConfig, tmp_path: Path) -> LadderConfig:
    shared = {
        field.name: getattr(fit_config, field.name)
        for field in dataclasses.fields(FitConfig)
        if field.name not in ("rung", "seed", "out_dir", "train", "reuse")
    }
    curves = tmp_path / "metrics.csv"
    curves.write_text("epoch,step,train/loss,val/recall@20\n0,1,3.0,\n0,2,2.5,0.1\n1,3,2.0,0.2\n")
    train = dataclasses.replace(fit_config.train, max_epochs=1)
    return LadderConfig(
        **shared, train=train, out_dir=tmp_path / "demo", seeds=(0, 1), num_resamples=20,
        pretrain_metrics=curves,
    )  # fmt: skip


def quiet() -> Console:
    return Console(file=io.StringIO(), width=80)


def test_a_ladder_writes_the_figures_of_every_rung_and_a_report(
    ladder_config: LadderConfig, fake_release: object, dataset: Dataset
) -> None:
    console = quiet()
    ladder(ladder_config, console=console)
    figures = json.loads((ladder_config.out_dir / "metrics.json").read_text())
    for rung in RUNGS:
        for name in ("auc", "gauc", "logloss", "auc_cold"):
            one = figures[rung][name]
            assert one == figures["rungs"][rung][name]
            assert len(one["values"]) == 2
            if one["mean"] is not None:
                assert one["mean"] == pytest.approx(sum(one["values"]) / 2)
    assert figures["best_reachable_auc"] == dataset.manifest.extra["best_reachable_auc"]
    assert set(figures["test_opened"].values()) == {1}
    interval = figures["differences"]["aligned-none"]["auc"]
    assert interval["low"] <= interval["value"] <= interval["high"]
    assert figures["protocol"]["look_ahead"] is False
    assert "aligned" in console.file.getvalue()


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]


def test_the_report_is_one_file_without_script_or_outside_links(
    ladder_config: LadderConfig, fake_release: object
) -> None:
    ladder(ladder_config, console=quiet())
    page = (ladder_config.out_dir / "report.html").read_text()
    checker = Checker()
    checker.feed(page)
    assert "script" not in checker.tags
    assert all(link.startswith(("#", "data:")) for link in checker.links)
    assert "url(http" not in page
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert {"The ladder", "Calibration", "Map of the items", "Pre-training"} <= set(headings)
    assert checker.tags.count("svg") == 9
    assert "With 2 seeds a rung" in page


def test_a_ladder_keeps_finished_runs_and_repeats_changed_ones(
    ladder_config: LadderConfig, fake_release: object
) -> None:
    config = dataclasses.replace(ladder_config, rungs=("none", "noise"))
    ladder(config, console=quiet())
    runs = [one.out_dir / "metrics.json" for one in run_configs(config)]
    before = [path.stat().st_mtime_ns for path in runs]
    runs[1].unlink()
    console = quiet()
    ladder(config, console=console)
    after = [path.stat().st_mtime_ns for path in runs]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]
    assert "3 of 4 runs are kept" in console.file.getvalue()
    changed = dataclasses.replace(config, history_length=4)
    console = quiet()
    ladder(changed, console=console)
    assert "kept" not in console.file.getvalue()


def test_a_report_can_be_written_again_and_from_a_single_run(
    ladder_config: LadderConfig, fake_release: object
) -> None:
    config = dataclasses.replace(ladder_config, rungs=("none", "aligned"), seeds=(0,))
    ladder(config, console=quiet())
    first = json.loads((config.out_dir / "metrics.json").read_text())
    again = report(ReportConfig(run_dir=config.out_dir, num_resamples=20))
    assert again.spreads["none"]["auc"].mean == first["none"]["auc"]["mean"]
    assert first["none"]["auc"]["std"] == 0
    single = run_configs(config)[1].out_dir
    report(ReportConfig(run_dir=single, num_resamples=20))
    page = (single / "report.html").read_text()
    assert ": aligned, deepfm</title>" in page
    assert "There is no other rung to compare with." in page
    assert "Differences with their" not in page
    assert "fingerprint" in json.loads((single / "metrics.json").read_text())


def test_a_report_leaves_out_runs_of_other_settings_than_the_last_ladder(
    ladder_config: LadderConfig,
    fake_release: object,
    embeddings_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = Path(shutil.copytree(embeddings_dir, tmp_path / "embeddings"))
    config = dataclasses.replace(ladder_config, embeddings_dir=folder, rungs=("none", "raw"))
    ladder(config, console=quiet())
    head = dataclasses.replace(config.head, name="fm")
    ladder(dataclasses.replace(config, head=head, rungs=("none",)), console=quiet())
    train = dataclasses.replace(config.train, lr=0.01)
    last = dataclasses.replace(config, seeds=(1,), train=train)
    expected = ladder(last, console=quiet()).as_json()
    again = ReportConfig(run_dir=config.out_dir, num_resamples=20)
    assert report(again).as_json() == expected
    assert expected["seeds"] == {"none": [1], "raw": [1]}
    assert "4 runs of other settings or data than its config.yaml are left out" in caplog.text
    assert "ladder/fm/none/seed-0, ladder/fm/none/seed-1" in caplog.text
    moved = Path(shutil.move(config.out_dir, tmp_path / "moved"))
    folder.rename(tmp_path / "gone")
    again = ReportConfig(run_dir=moved, num_resamples=20)
    assert report(again).as_json() == expected
    assert "runs are told apart by their settings alone" in caplog.text
    shutil.rmtree(moved / "ladder/deepfm/none/seed-1")
    shutil.rmtree(moved / "ladder/deepfm/raw/seed-1")
    with pytest.raises(FileNotFoundError, match="found 4 finished runs, none of which"):
        report(again)


def test_the_usual_rungs_leave_raw_out_for_a_release_on_ids_alone(
    ladder_config: LadderConfig, fake_release: object, embeddings_dir: Path, tmp_path: Path
) -> None:
    assert rungs_of(ladder_config) == RUNGS
    folder = Path(shutil.copytree(embeddings_dir, tmp_path / "ids_alone"))
    items = pq.read_table(folder / "items.parquet")
    pq.write_table(items.drop_columns(["raw"]), folder / "items.parquet")
    config = dataclasses.replace(ladder_config, embeddings_dir=folder, seeds=(0,))
    comparison = ladder(config, console=quiet())
    assert comparison.rungs == ["none", "noise", "aligned"]
    with pytest.raises(ValueError, match="a release on ids alone has no raw"):
        ladder(dataclasses.replace(config, rungs=("none", "raw")), console=quiet())


def test_the_whole_ladder_stands_in_the_report(
    ladder_config: LadderConfig, real_config: FitConfig, blind_embeddings: Path
) -> None:
    config = dataclasses.replace(
        ladder_config,
        released=real_config.released,
        embeddings_dir=real_config.embeddings_dir,
        rungs=("make", "none", "aligned", "aligned+simtier", "scratch", "raw"),
        seeds=(0,),
        content=ContentConfig(make_epochs=1),
        knock_outs=(blind_embeddings,),
    )
    comparison = ladder(config, console=quiet())
    assert comparison.rungs == ["none", "scratch", "raw", "aligned", "aligned+simtier", "make"]
    pairs = set(comparison.differences)
    assert {"make-aligned", "aligned-scratch", "aligned-raw", "scratch-none"} <= pairs
    assert not any(pair.startswith("none-") for pair in pairs)
    assert set(comparison.knock_outs) == {
        f"{rung} without image" for rung in ("aligned", "aligned+simtier", "make")
    }
    page = (config.out_dir / "report.html").read_text()
    assert "a content model trained first and on its own" in page
    assert "Without a modality" in page
    assert "The architecture of scratch, raw and aligned is the same." in page
    assert "<b>position first</b>: shown in the first place" in page
    assert "<b>head</b>" in page
    again = report(ReportConfig(run_dir=config.out_dir, num_resamples=20))
    assert again.as_json()["knock_outs"] == comparison.as_json()["knock_outs"]


def test_a_look_ahead_that_was_allowed_stands_in_the_report(
    ladder_config: LadderConfig, fake_release: FakeRelease, dataset: Dataset
) -> None:
    fake_release.newest_event = dataset.manifest.newest_event
    config = dataclasses.replace(ladder_config, rungs=("none", "aligned"), allow_look_ahead=True)
    comparison = ladder(config, console=quiet())
    page = (config.out_dir / "report.html").read_text()
    assert "YES, allowed by allow_look_ahead" in page
    assert "its gains are not evidence" in page
    assert not math.isnan(comparison.spreads["aligned"]["auc"].mean)
