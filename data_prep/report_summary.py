"""A dataset in about ten sentences, for the head of the page and for the terminal."""

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np

from data_prep.records import SPLITS
from data_prep.report_counts import share_of_top
from data_prep.report_facts import ReportFacts


def summary(facts: ReportFacts) -> list[str]:
    """One sentence a section of the page, where it has something to say."""
    return [
        *_sizes(facts),
        _rows_left_out(facts),
        *_privacy(facts),
        *_missing(facts),
        _cold(facts),
        _distributions(facts),
        *_clicks(facts),
        quarantined(facts),
        _duplicates(facts),
    ]


def day(time_ms: int) -> str:
    """The time in UTC, to the minute."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def size(num_bytes: int) -> str:
    """Bytes for a reader."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def percent(part: int, whole: int) -> str:
    """A share that does not round something to nothing."""
    if whole == 0:
        return "none"
    share = part / whole
    if part and share < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if part < whole and share > 0.999 else f"{100 * share:.1f} %"


def quarantined(facts: ReportFacts) -> str:
    """How many records were set aside, and by how many causes."""
    causes = facts.manifest.quarantine
    if not causes:
        return "Quarantine is empty: no record and no content was set aside."
    worst = max(causes, key=lambda cause: causes[cause])
    return (
        f"Quarantine holds {sum(causes.values()):,} records of {len(causes)} causes; the most "
        f"frequent is {worst} with {causes[worst]:,}."
    )


def _sizes(facts: ReportFacts) -> Iterator[str]:
    manifest, counts = facts.manifest, facts.manifest.counts
    yield (
        f"{counts['items']:,} items, {counts['users']:,} users and {counts['events']:,} events "
        f"from {day(facts.events.oldest)} to {day(manifest.newest_event)} UTC; "
        f"{size(sum(facts.bytes_by_kind.values()))} on disk."
    )
    shares = [percent(counts[f"{split}_events"], counts["events"]) for split in SPLITS]
    yield (
        f"Validation begins at {day(manifest.cutoffs.valid_start)} and test at "
        f"{day(manifest.cutoffs.test_start)} UTC: {shares[0]}, {shares[1]} and {shares[2]} of the "
        "events."
    )


def _rows_left_out(facts: ReportFacts) -> str:
    lost: dict[str, tuple[int, int]] = {}
    for step in facts.manifest.filters:
        table = step.step.partition(":")[0]
        given, left_out = lost.get(table, (step.rows_in, 0))
        lost[table] = (given, left_out + step.rows_in - step.rows_out)
    parts = [
        f"{left_out:,} of {given:,} {table} ({percent(left_out, given)})"
        for table, (given, left_out) in lost.items()
        if left_out
    ]
    return f"Filters left out {', '.join(parts)}." if parts else "No filter left a row out."


def _privacy(facts: ReportFacts) -> Iterator[str]:
    record = facts.manifest.privacy
    if hashed := record.get("hashed_ids"):
        yield (
            f"Ids of {' and '.join(f'{kind}s' for kind in hashed)} are keyed hashes; the key's "
            f"fingerprint is {record['key_fingerprint']}."
        )
    if forget := record.get("forget"):
        found = [f"{count:,} in {table}" for table, count in forget["users_found"].items()]
        yield (
            f"{forget['ids']:,} users were to be forgotten and are in no table; the raw tables had "
            f"{', '.join(found)}."
        )


def _missing(facts: ReportFacts) -> Iterator[str]:
    cold = facts.is_cold_I
    parts = [
        f"{name} of {percent(int((~has).sum()), len(has))} of items "
        f"({percent(int((~has & cold).sum()), int(cold.sum()))} of cold ones)"
        for name, has in facts.has.items()
    ]
    if parts:
        yield f"Missing: {', '.join(parts)}."


def _cold(facts: ReportFacts) -> str:
    cold, test = facts.is_cold_I, facts.events.splits["test"]
    return (
        f"{percent(int(cold.sum()), len(cold))} of items are cold (no positive event in "
        f"training); they take {percent(test.num_cold, test.num_events)} of the test events, and "
        f"users without history {percent(test.num_without_history, test.num_events)}."
    )


def _distributions(facts: ReportFacts) -> str:
    lengths = facts.events.history_lengths_U
    seen = lengths[lengths > 0]
    median = float(np.median(seen)) if len(seen) else 0.0
    top, tenth = (share_of_top(facts.train_count_I, share) for share in (0.01, 0.1))
    return (
        f"The most popular 1 % of items have {100 * top:.1f} % of the positives in training, 10 % "
        f"have {100 * tenth:.1f} %; the median history has {median:,.0f} events, the longest "
        f"{lengths.max(initial=0):,}."
    )


def _clicks(facts: ReportFacts) -> Iterator[str]:
    if facts.impressions is None:
        return
    parts = [
        f"{split} {percent(counts.num_clicks, counts.num_shown)} of {counts.num_shown:,}"
        for split, counts in facts.impressions.splits.items()
    ]
    yield f"Clicks among impressions: {', '.join(parts)}."
    if repeated := facts.manifest.counts.get("duplicate_impressions"):
        config = facts.manifest.config.get("filter", {})
        kept = config.get("impression_duplicates") != "keep_exact_once"
        yield (
            f"{repeated:,} impressions repeat another in every column that is used"
            f"{', and are kept' if kept else ', and were left out'}."
        )


def _duplicates(facts: ReportFacts) -> str:
    parts = [
        f"{copies.groups.num_items:,} items share their {name} with another"
        for name, copies in facts.copies.items()
    ]
    if facts.near is not None:
        parts.append(f"{facts.near.num_items:,} have pictures that look alike")
    if not parts:
        return "Duplicates are unknown: the dataset has no content hashes."
    return f"Duplicates: {'; '.join(parts)}."
