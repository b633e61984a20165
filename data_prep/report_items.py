"""The sections of `report` that show single items: set aside, alike, and a sheet of pictures."""

from collections.abc import Iterator

import numpy as np

from data_prep.dataset import Dataset
from data_prep.duplicates import NEAR_DISTANCE, DuplicateGroups
from data_prep.html_page import Html, escape, join, section, table
from data_prep.picture_sheet import ItemCards, choose_items
from data_prep.quarantine_samples import Samples, read_samples
from data_prep.report_facts import ReportFacts
from data_prep.report_settings import ReportConfig
from data_prep.report_summary import quarantined

SAMPLES_A_CAUSE = 10
ITEMS_A_GROUP = 8
_SHEET_SIDE, _GROUP_SIDE = 200, 120
_CELL_CHARACTERS = 200
_SHEET_TEXT = {
    "Popular items": " of the tenth with the most positives in training",
    "Cold items": " of the items without a positive in training",
}


def quarantine_section(facts: ReportFacts, dataset: Dataset, cards: ItemCards) -> Html:
    """Records that were set aside, by cause, the most frequent first."""
    if not facts.manifest.quarantine:
        return section("Quarantine", quarantined(facts))
    samples = read_samples(dataset.dir, per_cause=SAMPLES_A_CAUSE)
    causes = facts.manifest.quarantine
    parts = [
        _cause(cause, count, samples.get(cause), cards)
        for cause, count in sorted(causes.items(), key=lambda pair: -pair[1])
    ]
    return section(
        "Quarantine",
        f"Look for a cause that has a pattern: it is a column misread rather than a bad row. "
        f"{quarantined(facts)}",
        *parts,
    )


def _cause(cause: str, count: int, samples: Samples | None, cards: ItemCards) -> Html:
    line = f"<summary><b>{escape(cause)}</b>: {count:,}"
    if samples is None:
        return Html(f"<details>{line}; no samples are kept</summary></details>")
    heading, rows = list(samples.columns), samples.rows
    if heading[0] == "item_row":
        heading = ["item_id", *heading]
        rows = [[cards.item_id(row[0]), *row] for row in rows]
    cells = [[_cell(value) for value in row] for row in rows]
    return Html(
        f"<details open>{line}, {len(rows)} shown</summary>"
        f"{table(heading, cells, kind='text')}</details>"
    )


def _cell(value: object) -> object:
    if value is None:
        return Html("<small>null</small>")
    text = str(value)
    return text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…"


def duplicate_sections(facts: ReportFacts, cards: ItemCards) -> Iterator[Html]:
    """Items that share content, the largest groups first."""
    if not facts.copies and facts.near is None:
        yield section(
            "Duplicates",
            "The dataset has no content hashes, so duplicates are unknown; re-run "
            "python -m data_prep shard to have them.",
        )
    for name, copies in facts.copies.items():
        cold = (
            f"Cold items that have what a warm one has: {copies.num_cold_of_warm:,}; these are "
            "cold by their id alone."
        )
        yield section(
            f"Items with the same {name}",
            "Look for placeholders, and for one product under several ids: as a negative of "
            f"itself it is noise. {_counted(copies.groups)} "
            f"{cold if copies.num_cold_of_warm else ''}",
            _groups(copies.groups, cards),
        )
    if facts.near is not None:
        yield section(
            "Pictures that look alike",
            f"Perceptual hashes linked by differences of at most {NEAR_DISTANCE} of 64 bits, "
            "without groups of one and the same file; they see shapes, not colours. Look for "
            "variants of one product, and for pictures of hardly any detail. "
            f"{facts.num_near_compared:,} pictures were compared. "
            f"{_counted(facts.near)}",
            _groups(facts.near, cards),
        )


def _counted(groups: DuplicateGroups) -> str:
    if not groups.num_groups:
        return "There are none."
    if groups.num_groups == 1:
        return f"{groups.num_items:,} items in one group, so {groups.num_spare:,} to spare."
    return (
        f"{groups.num_items:,} items in {groups.num_groups:,} groups, so {groups.num_spare:,} to "
        f"spare; the {len(groups.largest)} largest groups are shown."
    )


def _groups(groups: DuplicateGroups, cards: ItemCards) -> Html:
    """The largest groups, one beside the other as far as they fit."""
    shown = [
        Html(
            f"<div><h3>{len(rows):,} items{', some shown' if len(rows) > ITEMS_A_GROUP else ''}"
            f"</h3>{cards.cards(rows[:ITEMS_A_GROUP], side=_GROUP_SIDE, kind='small')}</div>"
        )
        for rows in groups.largest
    ]
    return Html(f'<div class="groups">{join(shown)}</div>')


def sheet_sections(facts: ReportFacts, cards: ItemCards, config: ReportConfig) -> Iterator[Html]:
    """The sheet of pictures, or of texts where the dataset has no pictures."""
    everything = np.ones(len(facts.train_count_I), bool)
    eligible = facts.has.get("image", everything)
    popular, cold = choose_items(
        facts.train_count_I,
        eligible if eligible.any() else everything,
        size=config.num_pictures,
        seed=config.seed,
    )
    for title, rows in (("Popular items", popular), ("Cold items", cold)):
        if len(rows):
            yield section(
                title,
                "Look for texts that do not belong to their picture: one shifted column does it. "
                f"{len(rows)} at random{_SHEET_TEXT[title]}, with seed {config.seed}.",
                cards.cards(rows, side=_SHEET_SIDE),
            )
