"""What an impression led to beside the click, and how it came about: typed, or set aside.

Outcomes are further labels; the place, the logged propensity and the treatment are facts of the
exposure. None is a feature: none is known before the impression, or none may be told to a model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep.columns import ImpressionColumns, InteractionColumns
from data_prep.records import EXPOSURE_COLUMNS
from data_prep.sources import Source, is_between

if TYPE_CHECKING:
    import ibis.expr.types as ir

MAX_POSITION = 1_000_000
MIN_PROPENSITY = 1e-30  # below it float32 would come near zero


@dataclass(frozen=True)
class Outcome:
    """One column of the raw table and what it becomes."""

    name: str
    """Its name in the dataset."""
    column: str
    """Its name in the raw table."""
    setting: str
    """Key of the settings that names it."""
    expected: str

    @property
    def raw(self) -> str:
        """Its name among the samples that are set aside."""
        return f"raw_{self.name}"

    @property
    def cause(self) -> str:
        """Why a row is set aside whose value is none."""
        kind = self.name if self.name in EXPOSURE_COLUMNS else f"label_{self.name}"
        return f"not_a_{kind}"


def outcomes_of(columns: InteractionColumns | ImpressionColumns) -> list[Outcome]:
    """Every outcome and exposure column that the settings name, in the order of the dataset."""
    if isinstance(columns, InteractionColumns):
        return []
    expected = {"binary": "0 or 1", "numeric": "finite numbers"}
    found = [Outcome(name, name, "labels", expected[kind]) for name, kind in columns.labels.items()]
    ranges = {
        "position": f"whole numbers from 0 to {MAX_POSITION:,}",
        "propensity": "probabilities above 0 and up to 1",
        "treatment": "0 or 1",
    }
    for name, column in columns.exposure.items():
        found.append(Outcome(name, column, name, ranges[name]))
    return found


def typed_outcomes(
    source: Source, columns: InteractionColumns | ImpressionColumns
) -> Iterator[tuple[str, "ir.Column"]]:
    """The columns as int8, int32 or float32, null where a value is bad, and as they are."""
    for one in outcomes_of(columns):
        assert isinstance(columns, ImpressionColumns)
        kind = columns.labels.get(one.name, one.name) if one.setting == "labels" else one.name
        if kind in ("binary", "treatment"):
            yield one.name, source.positives(one.column, setting=one.setting, positive_from=None)
        else:
            yield one.name, _number(source, one, kind)
        yield one.raw, source.table[one.column]


def _number(source: Source, one: Outcome, kind: str) -> "ir.Column":
    import ibis

    column = source.column(one.column, setting=one.setting)
    if not column.type().is_numeric():
        raise source.no_numbers(one.column, setting=one.setting, expected="numbers")
    number = column.cast("float64")
    if kind == "position":
        inside = is_between(column, 0, MAX_POSITION)
        # Of the range first, as what is far too large cannot be an integer.
        whole = ibis.ifelse(inside, number, ibis.null())
        return ibis.ifelse(whole.round() == whole, whole, ibis.null()).cast("int32")
    if kind == "propensity":
        inside = is_between(number, MIN_PROPENSITY, 1)
    else:
        inside = is_between(number, -1e30, 1e30)
        number = ibis.ifelse(number == 0, 0.0, number)  # -0.0, whose order engines disagree on
    return ibis.ifelse(inside, number, ibis.null()).cast("float32")
