"""The page of `report`, section by section; each says what to look for."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep import report_plots
from data_prep.dataset import Dataset
from data_prep.events import Int64
from data_prep.figures import BLUE, GREY, RUST
from data_prep.html_page import Html, bar, figure, join, page, section, table
from data_prep.manifest import Manifest
from data_prep.picture_sheet import ItemCards
from data_prep.report_facts import ReportFacts
from data_prep.report_items import duplicate_sections, quarantine_section, sheet_sections
from data_prep.report_settings import ReportConfig
from data_prep.report_summary import day, percent, size


def whole_page(
    facts: ReportFacts, dataset: Dataset, config: ReportConfig, *, lead: Sequence[str]
) -> str:
    """All sections in the order in which a dataset comes about."""
    cards = ItemCards(dataset, facts.train_count_I)
    return page(
        title=f"{facts.manifest.name}: what the dataset holds",
        lead=lead,
        sections=[
            _sizes(facts),
            _filters(facts),
            _missing(facts),
            _popularity(facts),
            _histories(facts),
            _timeline(facts),
            _clicks(facts),
            quarantine_section(facts, dataset, cards),
            *duplicate_sections(facts, cards),
            *sheet_sections(facts, cards, config),
        ],
    )


def _sizes(facts: ReportFacts) -> Html:
    manifest = facts.manifest
    times = {
        "oldest event": day(facts.events.oldest),
        "newest event before validation": day(manifest.newest_train_event),
        "validation from (valid_start)": day(manifest.cutoffs.valid_start),
        "test from (test_start)": day(manifest.cutoffs.test_start),
        "newest event": day(manifest.newest_event),
    }
    counts = {name.replace("_", " "): f"{count:,}" for name, count in manifest.counts.items()}
    total = max(sum(facts.bytes_by_kind.values()), 1)
    kinds = [
        [kind, size(count), percent(count, total), bar(count / total, colour=BLUE)]
        for kind, count in facts.bytes_by_kind.items()
    ]
    return section(
        "Times and sizes",
        "Look for cut-offs where you meant them, and a newest event that is not in the future. "
        "Times are UTC. Nothing after valid_start may be learnt from.",
        Html('<div class="columns"><div>'),
        table(["time", ""], list(times.items())),
        _made_with(manifest),
        Html("</div><div>"),
        table(["count", ""], list(counts.items())),
        Html("</div></div>"),
        Html("<h3>Bytes on disk</h3>"),
        table(["what", "bytes", "share", ""], kinds),
    )


def _made_with(manifest: Manifest) -> Html:
    """What was mapped, and the settings that decide what is in the dataset."""
    features = dataclasses.asdict(manifest.features)
    rows = {name: _pairs(facts) or "yes" for name, facts in manifest.modalities.items()}
    rows |= {f"{of} features": _pairs(kinds) or "none" for of, kinds in features.items()}
    rows["filter"] = _pairs(manifest.config.get("filter", {}))
    rows["fingerprint"] = manifest.source_fingerprint[:16]
    return table(["made with", ""], list(rows.items()), kind="text")


def _pairs(values: Mapping[str, object]) -> str:
    def shown(value: object) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return "; ".join(f"{name}: {shown(value)}" for name, value in values.items())


def _filters(facts: ReportFacts) -> Html:
    rows = [
        [
            step.step,
            f"{step.rows_in:,}",
            f"{step.rows_out:,}",
            f"{step.rows_in - step.rows_out:,}",
            percent(step.rows_in - step.rows_out, step.rows_in),
            bar(step.rows_out / max(step.rows_in, 1), colour=BLUE, rest=RUST),
        ]
        for step in facts.manifest.filters
    ]
    return section(
        "Rows through each filter",
        "Look for a step that loses more than you can explain. The bar is what a step was given; "
        "its red end is what the step left out. The k-core is given the training events only.",
        table(["step", "rows in", "rows out", "left out", "share", ""], rows),
    )


def _missing(facts: ReportFacts) -> Html:
    cold, test_I = facts.is_cold_I, facts.events.splits["test"].events_I
    lacks = {name: ~has for name, has in facts.has.items()}
    if len(lacks) > 1:
        lacks["every modality"] = np.logical_and.reduce(list(lacks.values()))
    groups = {
        "all items": (np.ones(len(cold), np.int64), GREY),
        "warm items": ((~cold).astype(np.int64), BLUE),
        "cold items": (cold.astype(np.int64), RUST),
        "test events": (test_I, GREY),
    }
    rows = [
        [name, *(_lacking(weight_I, lack, colour=colour) for weight_I, colour in groups.values())]
        for name, lack in lacks.items()
    ]
    return section(
        "Missing content",
        "Look for cold items that miss more than warm ones: content is all that is known of them. "
        "Cold are items without a positive event before valid_start, warm the others.",
        table(["without", *groups], rows) if rows else Html("<p>The dataset maps no content.</p>"),
    )


def _lacking(weight_I: Int64, lack: NDArray[np.bool_], *, colour: str) -> Html:
    """A cell: which share of the weight lies on items that lack something."""
    without, total = int(weight_I[lack].sum()), int(weight_I.sum())
    return join(
        [
            percent(without, total),
            Html(f"<small>{without:,} of {total:,}</small>"),
            bar(without / max(total, 1), colour=colour),
        ]
    )


def _popularity(facts: ReportFacts) -> Html:
    return section(
        "Popularity of items",
        "Look for a smooth, bent line: a step or a flat end is a limit, a filter or generated "
        "traffic. A few items with most of the events make popularity a strong baseline. Positive "
        "events before valid_start.",
        figure(report_plots.popularity_figure(facts.train_count_I)),
    )


def _histories(facts: ReportFacts) -> Html:
    lengths = facts.events.history_lengths_U
    without = int((lengths == 0).sum())
    return section(
        "Lengths of histories",
        f"Look for a sudden drop: histories were cut there, or too short ones were left out. "
        f"Dashed: the length that 50, 90 and 99 % of users do not exceed. {without:,} of "
        f"{len(lengths):,} users ({percent(without, len(lengths))}) have no event before "
        "valid_start and are not on the axis.",
        figure(report_plots.history_figure(lengths)),
    )


def _timeline(facts: ReportFacts) -> Html:
    splits = facts.events.splits
    rows = [
        [
            split,
            f"{counts.num_events:,}",
            percent(counts.num_positives, counts.num_events),
            f"{counts.num_users:,}",
            f"{counts.num_items:,}",
            percent(counts.num_cold, counts.num_events),
            percent(counts.num_without_history, counts.num_events),
        ]
        for split, counts in splits.items()
    ]
    heading = ["split", "events", "positive", "users", "items", "on cold items",
               "by users without history"]  # fmt: skip
    return section(
        "Events over time",
        "Look for gaps, for spikes of imported rows, and for a test period long enough to judge "
        "on. An id-only model knows nothing of cold items, nor of users without history.",
        figure(
            report_plots.timeline_figure(
                facts.events.time_edges,
                {split: counts.timeline_T for split, counts in splits.items()},
                facts.manifest.cutoffs,
            )
        ),
        table(heading, rows),
    )


def _clicks(facts: ReportFacts) -> Html:
    title = "The CTR task"
    if facts.impressions is None:
        return section(title, "The dataset has no impressions, so no click rate can be learnt.")
    splits = facts.impressions.splits
    rows = [
        [
            split,
            f"{counts.num_shown:,}",
            f"{counts.num_clicks:,}",
            percent(counts.num_clicks, counts.num_shown),
            percent(counts.num_cold_clicks, counts.num_cold),
            percent(counts.num_cold, counts.num_shown),
            f"{counts.num_users:,}",
            f"{counts.num_items:,}",
        ]
        for split, counts in splits.items()
    ]
    heading = ["split", "impressions", "clicks", "click rate", "click rate, cold", "cold share",
               "users", "items"]  # fmt: skip
    return section(
        title,
        "Look for a click rate that jumps at a cut-off: then the splits were not logged alike, "
        "and calibration on one says little of the other. A larger dot is more impressions. Where "
        "clicks are events too, cold items have no click in training: it would make them warm.",
        figure(
            report_plots.click_rate_figure(
                facts.impressions.time_edges,
                {split: counts.shown_T for split, counts in splits.items()},
                {split: counts.clicks_T for split, counts in splits.items()},
                facts.manifest.cutoffs,
            )
        ),
        table(heading, rows),
    )
