"""A wrong setting of any command is one line with what was found and what was expected."""

from pathlib import Path

import pytest
import yaml

from data_prep.__main__ import main
from data_prep.setting_errors import in_one_line

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"positon": "slot"}, "impressions.positon: found a setting that does not exist; did you "
         "mean impressions.position?"),
        ({"time_unit": "weeks"}, "impressions.time_unit: found 'weeks', expected one of auto, s, "
         "ms, us, date, timestamp"),
        ({"features": {"device": "categorial"}}, "impressions.features: found 'categorial', "
         "expected one of numeric, categorical, multi; did you mean categorical?"),
        ({"positive_from": "much"}, "impressions.positive_from: found 'much', expected a float"),
        ({"path": None}, "impressions.path: found nothing, expected a value; give it"),
        ("raw", "impressions: found 'raw', expected a mapping of its keys"),
    ],
)  # fmt: skip
def test_a_wrong_key_inside_a_section_that_may_be_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: object, expected: str
) -> None:
    settings = yaml.safe_load((ROOT / "configs/toy/shard.yaml").read_text())
    if isinstance(change, dict):
        inside = settings["impressions"] | change
        change = {name: value for name, value in inside.items() if value is not None}
    settings["impressions"] = change
    (tmp_path / "shard.yaml").write_text(yaml.safe_dump(settings))
    assert main(["shard", "--config", str(tmp_path / "shard.yaml")]) == 2
    assert capsys.readouterr().err == f"error: {expected}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--impressions.positon", "slot"], "impressions.positon: found a setting that does not "
         "exist; did you mean impressions.position?"),
        (["--filter.duplicate", "keep_all"], "filter.duplicate: found a setting that does not "
         "exist; did you mean filter.duplicates?"),
        (["--filtre.duplicates", "keep_all"], "filtre: found a setting that does not exist; did "
         "you mean filter?"),
        (["--sounds.longest", "3"], "sounds.longest: found a setting that does not exist, expected "
         "one of max_seconds"),
        (["--quite_another", "3"], "quite_another: found a setting that does not exist; --help "
         "lists those that do"),
        (["--stage", "contents"], "stage: found 'contents', expected one of all, tables, content, "
         "manifest; did you mean content?"),
        (["--part", "first"], "part: found 'first', expected an int"),
    ],
)  # fmt: skip
def test_a_wrong_flag(capsys: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    assert main(["shard", "--config", str(ROOT / "configs/toy/shard.yaml"), *words]) == 2
    assert capsys.readouterr().err == f"error: {expected}\n"


def test_any_other_error_stays_what_it_is() -> None:
    assert in_one_line(ValueError("found this,\n  expected that")) == "found this, expected that"
