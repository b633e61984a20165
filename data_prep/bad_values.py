"""How many rows of a log were set aside for one column, and whether a run accepts so many.

Ids, times and unknown items are not judged here: guests and items that left the shop are normal.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.columns import ImpressionColumns, InteractionColumns
from data_prep.outcomes import outcomes_of
from data_prep.records import QUARANTINE_DIR
from data_prep.settings import RunConfig, ShardConfig
from data_prep.work import TablesReport, WorkFiles

FEW_ROWS = 10
"""Fewer bad rows than these are always accepted, as a few are a large share of a small table."""
EXAMPLES = 4


@dataclass(frozen=True)
class JudgedColumn:
    """A column whose bad values set rows aside."""

    cause: str
    column: str
    setting: str
    expected: str
    raw: str | None
    """Its name among the samples that are set aside; None where they leave it out."""


def refuse_bad_values(
    work: WorkFiles, report: TablesReport, config: ShardConfig, run: RunConfig
) -> None:
    """Raise where a column set more rows aside than the run accepts; the tables stay.

    Raises:
        ValueError: it names the column, some of its values, and what to do.
    """
    for setting in ("interactions", "impressions"):
        if (columns := getattr(config, setting)) is None:
            continue
        step = f"{setting}: usable rows"
        rows = next(one.rows_in for one in report.filters if one.step == step)
        for one in _judged(setting, columns):
            count = report.quarantine.get(f"{setting}/{one.cause}", 0)
            if count < FEW_ROWS or count <= run.max_bad_value_share * rows:
                continue
            raise ValueError(
                f"{columns.path}: column {one.column!r}: {count:,} of {rows:,} rows "
                f"({count / rows:.1%}) hold {_examples(work, setting, one)}, expected "
                f"{one.expected} in all but a share of {run.max_bad_value_share:g}; correct "
                f"{one.setting}, or leave these rows out with a larger --max_bad_value_share"
            )


def _judged(
    setting: str, columns: InteractionColumns | ImpressionColumns
) -> Iterator[JudgedColumn]:
    if columns.label is not None:
        of_any = columns.positive_from is not None
        yield JudgedColumn(
            cause="not_a_label",
            column=columns.label,
            setting=f"{setting}.label" if of_any else f"{setting}.label or positive_from",
            expected="numbers" if of_any else "0 or 1",
            raw="raw_label",
        )
    if isinstance(columns, InteractionColumns) and columns.weight is not None:
        yield JudgedColumn(
            cause="not_a_weight",
            column=columns.weight,
            setting=f"{setting}.weight",
            expected="numbers of 0 or more",
            raw=None,
        )
    for one in outcomes_of(columns):
        yield JudgedColumn(
            cause=one.cause,
            column=one.column,
            setting=f"{setting}.{one.setting}",
            expected=one.expected,
            raw=one.raw,
        )


def _examples(work: WorkFiles, setting: str, one: JudgedColumn) -> str:
    """Some bad values, from the samples that were kept."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    samples = work.dataset_dir / QUARANTINE_DIR / f"{setting}.parquet"
    if one.raw is None or not samples.is_file():
        return "something else"
    table = pq.read_table(samples, columns=["cause", one.raw])
    found = table.filter(pc.field("cause") == one.cause)[one.raw].unique().to_pylist()
    values = sorted(value for value in found if value is not None)
    shown = (values + ["nothing"] * (None in found))[:EXAMPLES]
    return f"{', '.join(shown)}{', …' if len(found) > EXAMPLES else ''}"
