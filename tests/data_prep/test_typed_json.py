from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from data_prep.typed_json import from_json


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be positive, got {self.width}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: dict[str, Inner]
    kind: Literal["a", "b"] = "a"
    share: float = 0.5
    sizes: tuple[int, ...] = ()
    weights: dict[int, float] = field(default_factory=dict)
    maybe: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


GOOD = {"name": "x", "inner": {"t": {"width": 3}}}


def test_values_of_the_right_types_become_dataclasses() -> None:
    raw = GOOD | {"share": 1, "sizes": [1, 2], "weights": {"16": 0.5}, "extra": {"any": [None]}}
    found = from_json(Outer, raw, where="file")
    assert found == Outer(
        name="x", inner={"t": Inner(width=3)}, share=1.0, sizes=(1, 2), weights={16: 0.5},
        extra={"any": [None]},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "file: name: found 3, expected str"),
        ({"inner": []}, r"file: inner: found \[\], expected dict"),
        ({"inner": {"t": None}}, "file: inner.t: found None, expected an object"),
        ({"inner": {"t": {"width": "3"}}}, "file: inner.t.width: found '3', expected int"),
        ({"inner": {"t": {"width": True}}}, "inner.t.width: found True, expected int"),
        ({"inner": {"t": {"width": 0}}}, "inner.t: width must be positive, got 0"),
        ({"inner": {"t": {}}}, "file: inner.t: found no width"),
        ({"kind": "c"}, "kind: found 'c', expected .*Literal"),
        ({"share": float("nan")}, "share: found nan, expected float"),
        ({"share": "0.5"}, "share: found '0.5', expected float"),
        ({"sizes": [1, None]}, r"sizes\[1\]: found None, expected int"),
        ({"sizes": {"a": 1}}, "sizes: found"),
        ({"weights": {"x": 1.0}}, "weights: found the key 'x', expected an integer"),
        ({"maybe": "no"}, "maybe: found 'no', expected int"),
        ({"extra": []}, r"extra: found \[\], expected dict"),
        ({"other": 1}, r"file: found the unknown keys \['other'\]"),
        ({"name": "y" * 500, "kind": "y" * 500}, "kind: found 'yyy"),
    ],
)
def test_any_other_value_is_named_with_its_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_json(Outer, GOOD | change, where="file")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("raw", [None, [], "text", 3, {}])
def test_what_is_no_such_object_is_refused(raw: object) -> None:
    with pytest.raises(ValueError, match=r"^file: found"):
        from_json(Outer, raw, where="file")
