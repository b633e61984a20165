"""metrics.json and report.html of a ladder: one file, no script, nothing from elsewhere."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.dataset import Dataset, open_dataset
from data_prep.html_page import Html, figure, page, section, table
from data_prep.records import replace_file
from finetune import plots, run_folder
from finetune.compare import Comparison, Spread, compare
from finetune.embeddings import Embeddings
from finetune.ladder import run_configs
from finetune.report_tasks import places_section, tasks_section
from finetune.run_folder import Run
from finetune.rungs import parse_rung
from finetune.settings import LadderConfig, ReportConfig
from finetune.slices import slice_text
from finetune.trust_page import summary_json, trust_sections, trust_summary
from finetune.verdict import overfitting, verdict
from pretrain.item_map import item_map, principal_directions

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
_MAP_ITEMS = 4000


def report(config: ReportConfig) -> Comparison:
    """Write the report again from finished runs, with the settings of the ladder."""
    of_ladder = run_folder.read_ladder_config(config.run_dir)
    pretrain_metrics = config.pretrain_metrics
    if pretrain_metrics is None and of_ladder is not None:
        pretrain_metrics = of_ladder.pretrain_metrics
    return write_report(
        config.run_dir,
        run_dirs=find_runs(config.run_dir, of_ladder),
        pretrain_metrics=pretrain_metrics,
        num_resamples=config.num_resamples,
    )


def find_runs(run_dir: Path, config: LadderConfig | None = None) -> list[Path]:
    """Finished runs in a ladder's folder, or the folder itself if it is one.

    With the ladder's settings only runs of these: others of before may lie beside them.
    """
    if (run_dir / run_folder.PREDICTIONS_FILE).is_file():
        return [run_dir]
    found = sorted(path.parent for path in run_dir.rglob(run_folder.PREDICTIONS_FILE))
    found = [path for path in found if (path / run_folder.METRICS_FILE).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{run_dir}: found no finished run, expected some under ladder/; "
            "run python -m finetune ladder"
        )
    if config is None:
        return found
    of_ladder = _of_ladder(config)
    kept = [path for path in found if path in of_ladder]
    if not kept:
        raise FileNotFoundError(
            f"{run_dir}: found {len(found)} finished runs, none of which this code made with the "
            f"settings in its {run_folder.CONFIG_FILE} and on its data; re-run python -m finetune "
            "ladder"
        )
    if len(kept) < len(found):
        left_out = ", ".join(str(path.relative_to(run_dir)) for path in found if path not in kept)
        logger.warning(
            "%s: %d runs of other settings or data than its %s are left out: %s",
            run_dir, len(found) - len(kept), run_folder.CONFIG_FILE, left_out,
        )  # fmt: skip
    return kept


def _of_ladder(config: LadderConfig) -> set[Path]:
    """Folders of the finished runs that the ladder's settings, and its data, stand for."""
    configs = run_configs(config)
    about = config.embeddings_dir and config.embeddings_dir / "embeddings.json"
    if about is None or about.is_file():
        return {one.out_dir for one in configs if run_folder.is_finished(one)}
    # A report needs no embeddings, so that theirs may be gone since.
    logger.warning("%s: found no such file, so runs are told apart by their settings alone", about)
    ended = [one for one in configs if (one.out_dir / run_folder.METRICS_FILE).is_file()]
    settings = run_folder.decisive_settings
    return {
        one.out_dir
        for one in ended
        if settings(run_folder.read_config(one.out_dir)) == settings(one)
    }


def write_report(
    out_dir: Path, *, run_dirs: list[Path], pretrain_metrics: Path | None, num_resamples: int
) -> Comparison:
    """Compare the runs and write both files."""
    runs = [Run.load(path) for path in run_dirs]
    heads = sorted({run.record["head"] for run in runs})
    if len(heads) > 1:
        raise ValueError(
            f"{out_dir}: found runs of the heads {heads}, expected one; give one head's folder"
        )
    settings = run_folder.read_config(run_dirs[-1])
    dataset = open_dataset(settings.dataset_dir)
    comparison = compare(runs, dataset, num_resamples=num_resamples)
    sentences = verdict(comparison)
    is_single = out_dir in run_dirs
    if not is_single:  # a single run's own metrics.json says what the run found
        facts = {
            "head": heads[0],
            "verdict": sentences,
            "protocol": _protocol(comparison),
            "trust": summary_json(trust_summary(comparison)),
        }
        content = comparison.as_json() | facts
        run_folder.write_json(content, out_dir / run_folder.METRICS_FILE)
    page = _page(
        comparison, dataset, sentences=sentences, head=heads[0],
        embeddings_dir=settings.embeddings_dir, pretrain_metrics=pretrain_metrics,
    )  # fmt: skip
    replace_file(out_dir / REPORT_FILE, page.encode())
    return comparison


def _protocol(comparison: Comparison) -> dict[str, Any]:
    """What all runs rest on, taken from the highest rung."""
    return dict(comparison.runs[comparison.rungs[-1]][0].record["provenance"])


def _page(
    comparison: Comparison,
    dataset: Dataset,
    *,
    sentences: list[str],
    head: str,
    embeddings_dir: Path | None,
    pretrain_metrics: Path | None,
) -> str:
    sections = [
        ("The ladder", _ladder_text(comparison), plots.ladder_figure(comparison)),
        ("Who it helps", _slice_text(comparison), plots.slices_figure(comparison)),
        ("Learning curves", " ".join(["Validation AUC that falls while training AUC rises is the "
         "ids' overfitting.", *overfitting(comparison)]), plots.learning_curves(comparison)),
        ("Calibration", "A point above the line is clicked more often than predicted.",
         plots.calibration_figure(comparison)),
    ]  # fmt: skip
    if embeddings_dir is not None and (embeddings_dir / "embeddings.json").is_file():
        drawn = _map(dataset, embeddings_dir)
        if drawn:
            sections.append(("Map of the items", *drawn))
    if pretrain_metrics is not None and pretrain_metrics.is_file():
        curves = plots.pretrain_curves(pretrain_metrics)
        if curves:
            sections.append(("Pre-training", "What the pre-training run logged.", curves))
    elif pretrain_metrics is not None:
        logger.warning("%s: no such file, so no pre-training curves", pretrain_metrics)
    drawings = [
        section(title, text, figure(drawing, kind="narrow" if title == "Calibration" else "wide"))
        for title, text, drawing in sections
    ]
    side_by_side = section(
        "Side by side",
        f"Mean ± standard deviation over the seeds, on the {comparison.judged_on} split.",
        _table(comparison),
        *_differences(comparison),
    )
    how = section(
        "How it was run", "What the figures rest on.", _how(comparison, dataset, head=head)
    )
    alone = comparison.rungs[0] if len(comparison.runs) == 1 else None
    return page(
        title=f"{dataset.manifest.name}: {alone}, {head}"
        if alone
        else f"{dataset.manifest.name}: does pre-training help?",
        lead=sentences or ["There is no other rung to compare with."],
        sections=[
            side_by_side,
            *tasks_section(comparison),
            *places_section(comparison),
            *drawings,
            *_blind(comparison),
            *trust_sections(trust_summary(comparison)),
            how,
        ],
    )


def _ladder_text(comparison: Comparison) -> str:
    num_seeds = max(len(runs) for runs in comparison.runs.values())
    text = (
        f"Bars are 95 % intervals by drawing users again; a dot beside them is a seed "
        f"({num_seeds} here)."
    )
    rungs = [parse_rung(name) for name in comparison.rungs]
    alike = [rung.name for rung in rungs if rung.vectors != "none" and not rung.parts]
    if len(alike) > 1:
        text += f" The architecture of {', '.join(alike[:-1])} and {alike[-1]} is the same."
    return text


def _slice_text(comparison: Comparison) -> Html:
    parts = [
        Html(f"<b>{name.replace('_', ' ')}</b>: {slice_text(name)}") for name in comparison.slices
    ]
    return Html("; ".join(parts))


def _table(comparison: Comparison) -> Html:
    names = {"auc": "AUC", "auc_cold": "AUC cold", "auc_tail": "AUC tail", "auc_head": "AUC head",
             "gauc": "GAUC", "logloss": "log loss", "ece": "ECE"}  # fmt: skip
    rows = [
        [_rung_cell(rung), *(comparison.spreads[rung][name].text for name in names)]
        for rung in comparison.rungs
    ]
    return table(["rung", *names.values()], rows)


def _rung_cell(rung: str) -> Html:
    dot = f'<span class="dot" style="background:{plots.colour(rung)}"></span>'
    return Html(f"{dot}{rung}<small>{parse_rung(rung).text}</small>")


def _differences(comparison: Comparison) -> list[Html]:
    if not comparison.differences:
        return []
    names = {"auc": "AUC", "auc_cold": "AUC cold", "auc_tail": "AUC tail", "auc_head": "AUC head",
             "gauc": "GAUC"}  # fmt: skip
    rows = [
        [pair.replace("-", " minus "), *(metrics[name].text for name in names)]
        for pair, metrics in comparison.differences.items()
    ]
    lead = Html("<p>Differences with their 95 % intervals over users, paired.</p>")
    return [lead, table(["difference", *names.values()], rows)]


def _blind(comparison: Comparison) -> list[Html]:
    """What the rungs lose without a modality, where such vectors were given."""
    if not comparison.knock_outs:
        return []
    names = {"auc": "AUC", "auc_cold": "AUC cold", "auc_tail": "AUC tail", "gauc": "GAUC"}
    rows = [
        [name, *(_lost(metrics[metric]) for metric in names)]
        for name, metrics in comparison.knock_outs.items()
    ]
    text = (
        "The trained model reads vectors as if no item had the modality; what it loses is what the "
        "modality carried. Mean ± standard deviation over the seeds."
    )
    return [section("Without a modality", text, table(["rung", *names.values()], rows))]


def _lost(spread: Spread) -> str:
    return spread.text if np.isnan(spread.mean) or spread.mean < 0 else f"+{spread.text}"


def _how(comparison: Comparison, dataset: Dataset, *, head: str) -> Html:
    """The table of how it was run."""
    runs = [run for members in comparison.runs.values() for run in members]
    about = _protocol(comparison)
    counts = comparison.counts
    release = about["release_fingerprint"]
    newest = about["release_newest_event"]
    rows = {
        "data set": f"{about['dataset']}, manifest sha256 {about['dataset_fingerprint'][:16]}",
        "validation from": _day(about["valid_start"]),
        "test from": _day(about["test_start"]),
        f"{comparison.judged_on} split": f"{counts['impressions']:,} impressions, "
        f"{counts['clicks']:,} clicks, "
        f"{counts['users']:,} users ({counts['gauc_users_left_out']:,} with one class left out "
        "of GAUC)",
        "judged on": comparison.judged_on,
        "test opened": f"{max(run.record['test_opened'] for run in runs)} time a run, at its end",
        "chosen on": "validation AUC (epoch); nothing on test",
        "release": f"{release[:16]}, newest event {_day(newest)}" if release else "none",
        "look-ahead": _look_ahead(runs),
        "head": f"{head}, {max(run.record['parameters'] for run in runs):,} parameters at most",
        "runs": f"{len(runs)}, {sum(run.record['seconds'] for run in runs):.0f} s together",
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if weights := runs[0].record.get("debias"):
        rows["inverse propensities"] = (
            f"{weights['effective_rows']:,.0f} effective rows of "
            f"{runs[0].record['train_impressions']:,}; {weights['clipped_share']:.1%} of the "
            f"impressions at the cap, {weights['largest_share']:.2%} of all weight on one"
        )
    return table([], list(rows.items()), kind="how")


_KNOWS_OF = {
    "release": "the release",
    "warm_start": "the run that was gone on from",
    "teacher": "the teacher",
}


def _look_ahead(runs: list[Run]) -> str:
    """Whether anything that the runs were built on has seen what they are judged by."""
    abouts = [run.record["provenance"] for run in runs]
    if any(about["look_ahead"] for about in abouts):
        ahead = {name for about in abouts for name in about.get("looks_ahead", ["release"])}
        who = " and ".join(text for name, text in _KNOWS_OF.items() if name in ahead)
        verb = "have" if len(ahead) > 1 else "has"
        return f"YES, allowed by allow_look_ahead: {who} {verb} seen the validation time"
    used = [name for name in ("warm_start", "teacher") if any(name in run.record for run in runs)]
    if any(about["release_fingerprint"] for about in abouts):
        used.insert(0, "release")
    if not used:
        return "no release was used"
    if used == ["release"]:
        return "none: the release's newest event is before validation"
    names = ", ".join(_KNOWS_OF[name] for name in used)
    return f"none: all that {names} learnt from is before validation"


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _map(dataset: Dataset, embeddings_dir: Path) -> tuple[str, str] | None:
    """Items in the plane, coloured by their first categorical or multi feature."""
    kinds = dataset.manifest.features.item
    name = next((one for one, kind in kinds.items() if kind != "numeric"), None)
    if name is None:
        return None
    column = dataset.items[name]
    if kinds[name] == "multi":
        groups = [values[0] if values else None for values in column.to_pylist()]
    else:
        groups = pc.cast(column, "string").to_pylist()
    embeddings = Embeddings.open(embeddings_dir, dataset)
    rows = np.random.default_rng(0).permutation(dataset.num_items)[:_MAP_ITEMS]
    vectors: dict[str, NDArray[np.float32]] = {
        title: embeddings.item_vectors(title).numpy()[:-1][rows]
        for title in ("raw", "aligned")
        if title in embeddings.columns
    }
    text = f"Two main directions of the item vectors, coloured by “{name}”."
    directions = {title: principal_directions(one) for title, one in vectors.items()}
    return text, item_map(directions, [groups[row] or "missing" for row in rows])
