"""The page of `pretrain report`, from a short run, and each figure on it against known ones."""

import json
import logging
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from data_prep.dataset import open_dataset
from data_prep.figures import house_style
from pretrain.changed_settings import UNKNOWN, all_settings, changed_settings
from pretrain.cli import main, parse_run
from pretrain.health import effective_rank
from pretrain.item_map import principal_directions
from pretrain.report import report
from pretrain.report_curves import GROUPS, Panel, grid, matching, thinned
from pretrain.report_systems import verdict
from pretrain.run_curves import Curve, read_curves
from pretrain.system_figures import read_protocols

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


def system(recall: float, *, se: float = 0.001, **more: float) -> dict[str, float]:
    return {"recall@20": recall, "ndcg@20": recall / 2, "se": se, "n_users": 50} | more


def metrics_file(path: Path, *, n_cases: int = 60, **systems: dict[str, float]) -> Path:
    about = {"n_cases": n_cases, "n_candidates": 200, "note": f"Days only. {SCRIPT}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"next": systems, "about": {"next": about}}))
    return path


@pytest.fixture(scope="module")
def run_dir(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps with three validations, every modality called ignored."""
    folder = tmp_path_factory.mktemp("run")
    words = f"""--config configs/toy/pretrain.yaml --run.wandb off --run.progress_bar false
    --run.dir {folder} --data.config.dataset_dir {toy_dataset} --run.health.every_steps 2
    --run.health.checks 1 --run.health.least_gate 0.9 --trainer.max_steps 6
    --trainer.accelerator cpu --trainer.log_every_n_steps 2 --trainer.limit_train_batches 3
    --data.config.valid_queries 40"""
    cli = parse_run(words.split(), command="fit")
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return folder


@pytest.fixture(scope="module")
def embeddings_dir(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    ids = open_dataset(toy_dataset).items["item_id"]
    generator = np.random.default_rng(0)
    vectors = {
        name: pa.FixedSizeListArray.from_arrays(
            pa.array(generator.normal(size=len(ids) * width).astype(np.float32)), width
        )
        for name, width in (("aligned", 8), ("event", 8), ("raw", 12))
    }
    pq.write_table(pa.table({"item_id": ids, **vectors}), folder / "items.parquet")
    (folder / "embeddings.json").write_text(json.dumps({"release_fingerprint": "abc"}))
    return folder


def test_the_page_has_every_part_and_no_script_or_outside_link(
    run_dir: Path, embeddings_dir: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    metrics = metrics_file(tmp_path / "m.json", ours=system(0.3), ease=system(0.2))
    out = tmp_path / "pages" / "report.html"
    lead = report(
        run_dir=run_dir, metrics=[metrics], embeddings_dir=embeddings_dir,
        dataset_dir=toy_dataset, out=out,
    )  # fmt: skip
    page = out.read_text()
    reader = Reader(page)
    assert "script" not in reader.tags
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in reader.links)
    assert "url(http" not in page
    titles = ["Systems: next", "Validation", "Training", "Speed", "Health of the space",
              "Map of the items", "Spectrum", "What the run was", "Settings that differ",
              "Warnings"]  # fmt: skip
    places = [page.index(f"<h2>{title}") for title in titles]
    assert places == sorted(places)
    assert reader.tags.count("svg") == 1 + 4 + 2 + 1
    assert all(sentence in reader.text for sentence in lead)
    for shown in (SCRIPT, "0.3000", "0.2980 to 0.3020", "none: the newest event",
                  "finished, step 6", "modality image is ignored",
                  "2025-02-21 00:00:00 UTC"):  # fmt: skip
        assert shown in reader.text


def test_a_fit_records_its_software_and_its_warnings(run_dir: Path) -> None:
    (life,) = json.loads((run_dir / "lives.json").read_text())
    assert life["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert life["processes"] == 1
    lines = (run_dir / "warnings.log").read_text().splitlines()
    assert sum("modality text is ignored" in line for line in lines) == 1
    logging.getLogger("pretrain.later").warning("after the run")
    assert "after the run" not in (run_dir / "warnings.log").read_text()


def test_the_curves_are_those_of_the_run(run_dir: Path) -> None:
    curves = read_curves(run_dir)
    assert curves["train/loss"].steps_P.tolist() == [1, 3, 5]
    assert curves["val/recall@20"].steps_P.tolist() == [1, 3, 5]
    assert {"health/gap_image_text", "health/effective_rank", "health/gradient_text"} <= set(curves)


def test_settings_that_differ_are_named_with_their_defaults(run_dir: Path) -> None:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    changed = {one.name: (one.value, one.default) for one in changed_settings(config)}
    assert changed["model.optim.lr"] == ("0.002", "0.001")
    assert changed["run.health.least_gate"] == ("0.9", "0.02")
    assert changed["model.encoders.towers.text.max_tokens"] == ("24", "77")
    assert changed["trainer.gradient_clip_val"] == ("1.0", "null")
    for untouched in ("model.optim.weight_decay", "seed_everything", "run.project",
                      "trainer.num_sanity_val_steps", "model.encoders.temperature"):  # fmt: skip
        assert untouched not in changed


def test_every_setting_of_this_version_is_known(tmp_path: Path) -> None:
    """Also those below a mapping that is empty by default, or a class."""
    words = f"""--config configs/toy/pretrain.yaml --config configs/zero2.yaml --run.wandb off
    --run.dir {tmp_path} --model.loss.matryoshka {{"16":0.5}} --model.loss.collaborative_weight 1
    --model.reuse.collaborative.path v --model.reuse.collaborative.newest_event 0"""
    config = parse_run(words.split(), command="fit").settings()
    settings = all_settings(config)
    assert [name for name, one in settings.items() if one.default == UNKNOWN] == []
    leaves = ("model.reuse.warm_start", "model.reuse.collaborative.column", "run.watch.nonfinite",
              "model.encoders.towers.image.fit", "data.config.pairs.recent")  # fmt: skip
    assert set(leaves) < set(settings)
    changed = {one.name: (one.value, one.default) for one in changed_settings(config)}
    assert changed["model.loss.matryoshka"] == ('{"16": 0.5}', "{}")
    assert not any(name.startswith("model.reuse.warm_start") for name in changed)


def test_a_setting_that_is_gone_and_a_strategy_are_shown() -> None:
    strategy = {"class_path": "pretrain.zero.ZeroStrategy", "init_args": {"stage": 3}}
    config = {"trainer": {"strategy": strategy}, "model": {"loss": {"gone": 1}}}
    found = [(one.name, one.value, one.default) for one in changed_settings(config)]
    assert found == [
        ("trainer.strategy", "ZeroStrategy", "auto"),
        ("trainer.strategy.stage", "3", "2"),
        ("model.loss.gone", "1", "(no setting of this version)"),
    ]


def test_a_run_alone_and_metrics_alone_make_a_page(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    main(["report", "--run_dir", str(copy)])
    assert "<h2>Training" in (copy / "report.html").read_text()
    metrics = metrics_file(tmp_path / "m.json", ours=system(0.3), ease=system(0.2))
    main(["report", "--metrics", f"[{metrics}]", "--out", str(tmp_path / "m.html")])
    assert "Systems: next" in (tmp_path / "m.html").read_text()


# ---------------------------------------------------------------------- systems


def sentence(path: Path, **systems: dict[str, float]) -> str:
    (protocol,) = read_protocols([metrics_file(path, **systems)])
    found = verdict(protocol)
    assert found is not None
    return found


def test_the_verdict_names_the_best_baseline_and_says_whether_intervals_meet(
    tmp_path: Path,
) -> None:
    one = sentence(tmp_path / "m.json", ours=system(0.3), ease=system(0.2), popularity=system(0.1))
    assert "0.3000, 1.50 times the best other system here (ease: 0.2000)" in one
    assert "do not overlap" in one
    close = sentence(tmp_path / "m.json", ours=system(0.3), ease=system(0.2995))
    assert "intervals overlap" in close


def test_the_verdict_speaks_of_the_release_and_its_blend_and_lets_neither_beat_the_other(
    tmp_path: Path,
) -> None:
    both = sentence(
        tmp_path / "m.json", ours=system(0.2), ours_blended=system(0.3), ease=system(0.15)
    )
    assert "next: ours finds Recall@20 0.2000, 1.33 times the best other system here (ease" in both
    assert "next: ours_blended finds Recall@20 0.3000, 2.00 times the best other" in both
    only = sentence(tmp_path / "m.json", ours_blended=system(0.3), ease=system(0.15))
    assert only.startswith("next: ours_blended finds")
    (protocol,) = read_protocols(
        [metrics_file(tmp_path / "m.json", ours=system(0.2), ours_blended=system(0.3))]
    )
    assert verdict(protocol) is None  # nothing to compare with


def test_the_verdict_hides_neither_a_loss_nor_another_metric(tmp_path: Path) -> None:
    behind = sentence(tmp_path / "m.json", ours=system(0.1), ease=system(0.2))
    assert "0.50 times the best other" in behind
    other = sentence(tmp_path / "m.json", ours=system(0.3), ease=system(0.2) | {"ndcg@20": 0.18})
    assert "by NDCG@20 ease is ahead, 0.1800 to 0.1500" in other


def test_baselines_that_find_nothing_make_no_ratio(tmp_path: Path) -> None:
    assert "no other system finds anything" in sentence(
        tmp_path / "m.json", ours=system(0.1), ease=system(0.0, se=0.0)
    )


def test_several_seeds_are_told_apart_and_a_shared_baseline_is_one(tmp_path: Path) -> None:
    files = [
        metrics_file(tmp_path / f"seed-{n}" / "m.json", ours=system(recall), ease=system(0.2))
        for n, recall in enumerate((0.3, 0.32, 0.34))
    ]
    (protocol,) = read_protocols(files)
    assert [one.label for one in protocol.systems] == [
        "ours (seed-0)", "ours (seed-1)", "ours (seed-2)", "ease"
    ]  # fmt: skip
    out = tmp_path / "r.html"
    (said,) = report(metrics=files, out=out)
    assert "0.3200 (mean of 3 files), 1.60 times" in said
    assert "0.3200 ± 0.0200" in Reader(out.read_text()).text


def test_knock_outs_are_neither_seeds_nor_competitors(tmp_path: Path) -> None:
    files = [
        metrics_file(
            tmp_path / f"seed-{n}" / "m.json", ours=system(recall), ease=system(0.2),
            ours_without_image=system(recall / 2), ours_without_text=system(2 * recall),
        )
        for n, recall in enumerate((0.2, 0.3))
    ]  # fmt: skip
    out = tmp_path / "r.html"
    (said,) = report(metrics=files, out=out)
    assert "0.2500 (mean of 2 files), 1.25 times the best other system here (ease" in said
    page = out.read_text()
    before, knock_outs = page.split("<h3>Knock-outs</h3>")
    assert "ours_without" not in before
    text = Reader(knock_outs.split("</table>")[0]).text
    rows = ("ours0.2500 ± ", "100%", "ours_without_image0.1250 ± ", "50%",
            "ours_without_text0.5000 ± ", "200%")  # fmt: skip
    places = [text.index(shown) for shown in rows]
    assert places == sorted(places)
    only = metrics_file(tmp_path / "only.json", ours_without_image=system(0.2))
    report(metrics=[only], out=out)
    assert "ours_without_image" in out.read_text()


def test_a_map_of_a_knock_out_says_so(embeddings_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(embeddings_dir, tmp_path / "blind")
    (folder / "embeddings.json").write_text(json.dumps({"without": ["image"]}))
    (said,) = report(embeddings_dir=folder, out=tmp_path / "r.html")
    assert "The aligned vectors without image of 240 items" in said


def test_a_bootstrap_interval_comes_before_the_standard_error(tmp_path: Path) -> None:
    path = metrics_file(tmp_path / "m.json", ours=system(0.3, low=0.29, high=0.33, mrr=0.1))
    (ours,) = read_protocols([path])[0].systems
    assert (ours.low, ours.high) == (0.29, 0.33)
    assert list(ours.metrics) == ["recall@20", "ndcg@20", "mrr"]


def test_one_user_has_no_interval(tmp_path: Path) -> None:
    path = metrics_file(tmp_path / "m.json", ours=system(0.3, se=float("nan")), ease=system(0.1))
    (ours, _) = read_protocols([path])[0].systems
    assert ours.low is None
    report(metrics=[path], out=tmp_path / "r.html")


def test_slices_stand_side_by_side(tmp_path: Path) -> None:
    path = metrics_file(tmp_path / "m.json", ours=system(0.3), ease=system(0.2))
    content: dict[str, Any] = json.loads(path.read_text())
    cold = {"ours": system(0.25) | {"n_users": 7}, "ease": system(0.0)}
    content["slices"] = {"next": {"warm": {"ours": system(0.35)}, "without_text": cold}}
    path.write_text(json.dumps(content))
    report(metrics=[path], out=tmp_path / "r.html")
    text = Reader((tmp_path / "r.html").read_text()).text
    for shown in ("without text", "0.2500", "0.3500", "50 users"):
        assert shown in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no valid JSON"),
        ("[1]", "no figures such as recall@20"),
        ('{"none": {"auc": {"mean": 0.6}}}', "no figures such as recall@20"),
        ('{"about": {}}', "no figures such as recall@20"),
    ],
)
def test_a_file_of_something_else_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_protocols([tmp_path / "m.json"])


def test_figures_of_other_questions_are_not_put_together(tmp_path: Path) -> None:
    files = [
        metrics_file(tmp_path / "a.json", n_cases=60, ours=system(0.3)),
        metrics_file(tmp_path / "b.json", n_cases=61, ease=system(0.2)),
    ]
    with pytest.raises(ValueError, match=r"n_cases \[60, 61\]"):
        read_protocols(files)


# ---------------------------------------------------------------------- curves and the map


def test_what_a_later_life_did_again_counts(tmp_path: Path) -> None:
    header = "epoch,step,train/loss\n"
    (tmp_path / "metrics-2.csv").write_text(header + "0,5,55\n0,7,57\n0,9,59\n")
    (tmp_path / "metrics-1.csv").write_text(header + "0,1,1\n0,3,3\n0,5,5\n0,6,6\n")
    (tmp_path / "metrics.csv").write_text(header + "0,8,8\n0,10,\n")
    curve = read_curves(tmp_path)["train/loss"]
    assert curve.steps_P.tolist() == [1, 3, 5, 7, 8]
    assert curve.values_P.tolist() == [1, 3, 55, 57, 8]


def test_a_panel_labels_its_curves_by_what_differs() -> None:
    flat = Curve(np.arange(2.0), np.ones(2))
    names = ["train/loss", "train/user_item_loss", "train/loss_weight", "val/loss"]
    panel = Panel("losses", r"train/(?:(.*)_)?loss", plain="together")
    found = matching(panel, dict.fromkeys(names, flat))
    assert {name: label for name, (label, _) in found.items()} == {
        "train/loss": "together", "train/user_item_loss": "user item"
    }  # fmt: skip


LOGGED = """
train/loss train/user_item_loss train/image_text_loss train/behaviour_weight train/scale
train/content_scale train/negatives train/image_text_negatives train/gate_image train/gate_balance
train/gradient_norm lr-AdamW/pg1 speed/samples_per_s speed/step_s speed/data_wait_share speed/mfu
memory/rss_gb memory/device_gb health/gate_image health/knock_out_image health/gradient_image
health/gap_image_text health/alignment_image_text health/uniformity_image health/effective_rank
val/recall@20 val/recall@50 val/ndcg@20
""".split()


@pytest.mark.parametrize("alone", [False, True])
def test_every_panel_has_its_axis_named_and_a_title_within_its_column(alone: bool) -> None:
    """Also where a run logged one curve of a panel alone, whose label joins the title."""
    curve = Curve(np.arange(3.0), 1e-4 + np.array([0.0, 1e-9, 2e-9]))
    curves = dict.fromkeys(LOGGED, curve)
    panels = [panel for group in GROUPS for panel in group.panels]
    lines = [dict(matching(panel, curves).values()) for panel in panels]
    drawn = [
        (panel, dict(list(found.items())[: 1 if alone else None]))
        for panel, found in zip(panels, lines, strict=True)
    ]
    assert all(found for _, found in drawn)
    with house_style():
        drawing = grid(drawn)
        drawing.draw_without_rendering()
        wide = drawing.bbox.width / 3
        for axes in drawing.axes:
            assert axes.get_xlabel() == "step"
            assert axes.title.get_window_extent().width < wide, axes.get_title()
            assert not axes.yaxis.get_offset_text().get_text(), axes.get_title()


def test_a_long_curve_is_drawn_by_means() -> None:
    long = Curve(np.arange(1000.0), np.arange(1000.0) * 2)
    short = thinned(long, most=10)
    assert short.steps_P.tolist() == [49.5 + 100 * n for n in range(10)]
    assert short.values_P.tolist() == [99 + 200 * n for n in range(10)]


def test_directions_of_points_whose_variances_are_known() -> None:
    generator = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    points = generator.normal(size=(50_000, 3)) * [3, 2, 1] + 5
    found = principal_directions((points @ rotation).astype(np.float32))
    np.testing.assert_allclose(found.variance_W, np.array([9, 4, 1]) / 14, atol=0.01)
    np.testing.assert_allclose(found.place_I2.std(0), [3, 2], rtol=0.02)
    assert found.in_plane == pytest.approx(13 / 14, abs=0.01)


def test_effective_rank_is_that_of_the_health_monitor() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32) * np.arange(16)
    expected = float(effective_rank(torch.from_numpy(rows)))
    assert principal_directions(rows).effective_rank == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------- bad input


def test_a_dataset_of_other_items_or_features_is_an_error(
    embeddings_dir: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.html"
    with pytest.raises(ValueError, match=r"found 'price', expected one of .*\['category'\]"):
        report(embeddings_dir=embeddings_dir, dataset_dir=toy_dataset, map_feature="price", out=out)
    other = shutil.copytree(embeddings_dir, tmp_path / "other")
    table = pq.read_table(other / "items.parquet")
    ids = pa.array([f"x{n}" for n in range(len(table))])
    pq.write_table(table.set_column(0, "item_id", ids), other / "items.parquet")
    with pytest.raises(ValueError, match="found none of the 240 items"):
        report(embeddings_dir=other, dataset_dir=toy_dataset, out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "found nothing to report on"),
        (["--metrics", "[nowhere.json]"], "out: found none"),
        (["--metrics", "[nowhere.json]", "--out", "r.html"], "nowhere.json: no such file"),
        (["--run_dir", "{tmp}"], "found no run.json, expected the folder of a run"),
        (["--embeddings_dir", "{tmp}", "--out", "r.html"], "expected an embeddings folder"),
        (["--run_dir", "{tmp}", "--map_items", "0"], "map_items: found 0"),
    ],
)
def test_a_missing_input_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["report", *(word.replace("{tmp}", str(tmp_path)) for word in words)])
    assert message in capsys.readouterr().err
