"""What columns of features become."""

from typing import TYPE_CHECKING

from data_prep.records import FeatureType

if TYPE_CHECKING:
    import ibis.expr.types as ir

FEATURE_TYPES: dict[FeatureType, str] = {
    "numeric": "float64",
    "categorical": "string",
    "multi": "array<string>",
}
"""What the columns of a dataset hold."""


def feature_fits(column: "ir.Column", kind: FeatureType) -> bool:
    """Whether a column can be a feature of this kind."""
    found = column.type()
    if kind == "numeric":
        return bool(found.is_numeric() or found.is_boolean())
    if kind == "categorical":
        return not found.is_nested()
    return bool(found.is_array() or found.is_string())


def typed_feature(column: "ir.Column", kind: FeatureType) -> "ir.Column":
    """A column that fits, as a dataset holds it; lists in text wait for `text_lists.with_lists`."""
    import ibis

    if kind == "multi" and column.type().is_string():
        return column.cast("string")
    target = FEATURE_TYPES[kind]
    if kind == "categorical" and column.type().is_floating():
        # A number that is none is missing, and no value called "nan".
        return ibis.ifelse(column * 0 == 0, column.cast(target), ibis.null()).cast(target)
    return column.cast(target)
