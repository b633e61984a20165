"""What a run was, for `report`: data, cut-offs, architecture, settings, software, warnings."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from data_prep.dataset import Dataset
from data_prep.html_page import Html, section, table
from data_prep.records import MANIFEST_FILE
from pretrain.changed_settings import changed_settings
from pretrain.export import RUN_FILE
from pretrain.lightning_cli import CONFIG_FILE
from pretrain.release import file_sha256
from pretrain.release_config import RELEASE_FORMAT
from pretrain.run_curves import Curve, read_curves
from pretrain.run_log import EVENTS_FILE, read_events
from pretrain.run_record import LIVES_FILE, WARNINGS_FILE, read_lives


@dataclass(frozen=True)
class RunFacts:
    """All that a run folder says of its run."""

    run_dir: Path
    about: dict[str, Any]
    """run.json: what a release will say of itself."""

    config: dict[str, Any]
    """config.yaml: every setting."""

    curves: dict[str, Curve]
    lives: list[dict[str, Any]]
    """Starts of the run; none where an older version made it."""

    warnings: list[str]
    end: str
    """How it ended."""


def read_run(run_dir: Path) -> RunFacts:
    """Read a run folder.

    Raises:
        FileNotFoundError: it lacks a file that every run leaves.
        ValueError: run.json is of something else.
    """
    for name in (RUN_FILE, CONFIG_FILE):
        if not (run_dir / name).is_file():
            raise FileNotFoundError(
                f"{run_dir}: found no {name}, expected the folder of a run; "
                "train with python -m pretrain fit, or give another run_dir"
            )
    about = json.loads((run_dir / RUN_FILE).read_text())
    if not isinstance(about, dict) or about.get("format") != RELEASE_FORMAT:
        raise ValueError(f"{run_dir / RUN_FILE}: found no description of a run of pretrain fit")
    warnings = run_dir / WARNINGS_FILE
    return RunFacts(
        run_dir=run_dir,
        about=about,
        config=yaml.safe_load((run_dir / CONFIG_FILE).read_text()),
        curves=read_curves(run_dir),
        lives=read_lives(run_dir),
        warnings=warnings.read_text().splitlines() if warnings.is_file() else [],
        end=_end(run_dir),
    )


def run_sentences(run: RunFacts, dataset: Dataset | None) -> list[str]:
    """How validation went, how it ended, and what to beware of."""
    sentences = []
    for name in ("val/recall@20", "val/recall@10", "val/recall@50"):
        if name in run.curves:
            sentences.append(_validation(run.curves, name))
            break
    else:
        sentences.append("The run logged no validation recall.")
    if not run.end.startswith("finished"):
        sentences.append(f"The run has not finished: {run.end}.")
    sentences += troubles(run.run_dir)
    if run.warnings:
        sentences.append(f"{len(run.warnings)} warnings while training; see below.")
    if run.about["newest_event"] >= run.about["valid_start"]:
        sentences.append("Look-ahead: training has seen events at or after valid_start.")
    if dataset is not None and not is_same(run, dataset):
        sentences.append(
            f"The dataset given ({dataset.manifest.name}) is not byte for byte the one that the "
            f"run was trained on ({run.about['dataset']}): the map's colours and the test "
            "cut-off are those of the dataset given."
        )
    return sentences


def troubles(run_dir: Path) -> list[str]:
    """What the run's log tells of, over all its lives; a hang is told by every rank."""
    told = Counter(one["event"] for one in read_events(run_dir))
    named = {
        "nonfinite": "steps were not finite",
        "spike": "steps had a loss far above those before",
        "hang": "times a rank hung",
        "save_failed": "saves failed",
    }
    found = [f"{told[event]} {text}" for event, text in named.items() if told[event]]
    return [f"{', '.join(found)}; {EVENTS_FILE} says when."] if found else []


def is_same(run: RunFacts, dataset: Dataset) -> bool:
    """The dataset is the one trained on."""
    return bool(file_sha256(dataset.dir / MANIFEST_FILE) == run.about["dataset_fingerprint"])


def run_sections(run: RunFacts, dataset: Dataset | None) -> list[Html]:
    """What the run was, its settings, and its warnings."""
    was = section("What the run was", "What the figures rest on.", _facts(run, dataset))
    changed = [[one.name, one.value, one.default] for one in changed_settings(run.config)]
    settings = section(
        "Settings that differ from the defaults",
        "Of the version that writes this page; every setting is in the run's config.yaml.",
        table(["setting", "value", "default"], changed, kind="text"),
    )
    return [was, settings, _warnings(run)]


def _facts(run: RunFacts, dataset: Dataset | None) -> Html:
    about = run.about
    rows: dict[str, object] = {
        "data set": f"{about['dataset']}, {about['num_items']:,} items, manifest sha256 "
        f"{about['dataset_fingerprint'][:16]}",
        "newest event seen": day(about["newest_event"]),
        "validation from": day(about["valid_start"]),
        "test from": "unknown without dataset_dir"
        if dataset is None
        else day(dataset.manifest.cutoffs.test_start),
        "look-ahead": "none: the newest event seen is before validation"
        if about["newest_event"] < about["valid_start"]
        else "YES: training has seen the validation time",
        "towers": "; ".join(_tower(name, tower) for name, tower in about["model"]["towers"].items())
        or "none: ids alone",
        "user encoder": ", ".join(f"{k} {v}" for k, v in about["model"]["user"].items()),
        "width": about["model"]["width"],
        "end": run.end,
    }
    if run.lives:
        last = run.lives[-1]
        starts = "; ".join(str(life["started"]) for life in run.lives)
        rows["started"] = starts
        rows["commit"] = last["commit"] or "unknown: not run from a checkout"
        rows["processes"] = last["processes"]
        rows["versions"] = ", ".join(f"{name} {one}" for name, one in last["versions"].items())
    else:
        rows["commit and versions"] = f"unknown: the run left no {LIVES_FILE} (an older version)"
    return table([], list(rows.items()), kind="how")


def _tower(name: str, tower: Mapping[str, Any]) -> str:
    return f"{name}: {tower['library']} {tower['name']}, {tower['weights']}, {tower['train']}"


def _warnings(run: RunFacts) -> Html:
    if not run.warnings:
        said = "None." if run.lives else "Unknown: the run kept no record (an older version)."
        return section("Warnings", said)
    # A warning repeats at every interval: the last of each kind is enough beside the count.
    shown = run.warnings[-20:]
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in shown)
    text = f"{len(run.warnings)} lines in {WARNINGS_FILE}, the last {len(shown)}:"
    return section("Warnings", text, Html(lines))


def _validation(curves: Mapping[str, Curve], name: str) -> str:
    curve = curves[name]
    best = int(curve.values_P.argmax())
    step = curve.steps_P[best]
    parts = [f"{curve.values_P[best]:.4f} on all queries"]
    for part in ("warm", "cold"):
        other = curves.get(f"{name}_{part}")
        if other is not None and step in other.steps_P:
            value = other.values_P[list(other.steps_P).index(step)]
            count = curves.get(f"val/queries_{part}")
            if count is None:
                parts.append(f"{value:.4f} on {part} items")
            elif count.values_P[-1]:  # without such queries the logged 0 says nothing
                parts.append(f"{value:.4f} on {part} items ({count.values_P[-1]:,.0f} queries)")
    shown = name.removeprefix("val/").capitalize()
    return (
        f"Validation {shown} was best at step {step + 1:,.0f}: {', '.join(parts)}; "
        f"at the end {curve.values_P[-1]:.4f}."
    )


def _end(run_dir: Path) -> str:
    for name, text in (
        ("DONE", "finished"),
        ("REQUEUE", "stopped on a signal, to be continued"),
        ("HANG", "ended because it hung, to be continued from what was saved last"),
    ):
        if (run_dir / name).is_file():
            return f"{text}, {(run_dir / name).read_text().strip()}"
    return "no DONE, REQUEUE or HANG: still running, or it failed"


def day(time_ms: int) -> str:
    """As a date, for a table."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
