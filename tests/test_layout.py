"""The import names are ours alone."""

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["data_prep", "pretrain", "finetune"])
def test_an_import_name_belongs_to_triptych_alone(name: str) -> None:
    owners = set(importlib.metadata.packages_distributions().get(name, []))
    assert owners == {"triptych"}, f"{name} is provided by {sorted(owners)}: use a fresh .venv"
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)


def test_there_is_no_dumping_ground() -> None:
    packages = [ROOT / name for name in ("data_prep", "pretrain", "finetune")]
    found = [
        path
        for package in packages
        for path in package.rglob("*.py")
        if path.stem.strip("_") in ("util", "utils", "common", "helpers", "misc")
    ]
    assert found == []
