import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from data_prep.__main__ import build_parser, main

ROOT = Path(__file__).parents[2]


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from data_prep.__main__ import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main(['shard', '--help'])\n"
        "heavy = {'torch', 'duckdb', 'ibis', 'pyarrow', 'PIL', 'numpy', 'webdataset'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr
    assert time.perf_counter() - start < 5  # 0.4 s on an idle core


def test_fields_are_documented_in_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["shard", "--help"])
    text = capsys.readouterr().out
    assert "Items in one tar" in text
    assert "Which part of the content step" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"interactons": {"path": "x"}}, "interactons"),
        ({"pictures": {"short_syde": 3}}, "short_syde"),
        ({"pictures": {"short_side": "large"}}, "short_side"),
        ({"pictures": {"short_side": 1}}, "expected at least 8"),
        ({"interactions": {"path": "x", "time_unit": "weeks"}}, "time_unit"),
    ],
)
def test_a_bad_setting_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], words: str
) -> None:
    settings = yaml.safe_load((ROOT / "configs/toy/shard.yaml").read_text())
    (tmp_path / "shard.yaml").write_text(yaml.safe_dump(settings | change))
    assert main(["shard", "--config", str(tmp_path / "shard.yaml")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--part", "3"], ["--num_parts", "2"], ["--stage", "some"]])
def test_a_bad_part_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", str(ROOT / "configs/toy/shard.yaml")]
    assert main(["shard", *config, *arguments]) == 2
    assert "error: " in capsys.readouterr().err


def test_the_three_commands_run_from_the_shell(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "data_prep", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    raw, dataset = tmp_path / "raw", tmp_path / "dataset"
    sizes = ["--num_users", "60", "--num_items", "80"]
    sizes += ["--num_events", "1500", "--num_impressions", "1500"]
    made = run("toy", "--out_dir", str(raw), *sizes)
    assert made.returncode == 0, made.stderr
    assert "best reachable AUC" in made.stdout
    paths = [f"--{name}.path={raw / name}.parquet" for name in ("interactions", "items", "users")]
    paths += [f"--impressions.path={raw}/impressions.parquet", f"--extra={raw}/truth.json"]
    config = ["--config", "configs/toy/shard.yaml", "--dataset_dir", str(dataset)]
    sharded = run("shard", *config, *paths)
    assert sharded.returncode == 0, sharded.stderr
    assert "impressions_test" in sharded.stdout
    assert run("verify", "--dataset_dir", str(dataset)).returncode == 0
    missing = run("verify", "--dataset_dir", str(tmp_path / "nowhere"))
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: ")
    assert "Traceback" not in missing.stderr


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*/shard.yaml")), ids=str)
def test_every_shard_yaml_parses(path: Path) -> None:
    parser = build_parser()
    settings = parser.parse_args(["shard", "--config", str(path)])
    assert parser.instantiate(settings).shard.name == path.parent.name


@pytest.mark.parametrize("section", ["split: null", "split: 1e9", "pictures:"])
def test_a_section_that_is_no_mapping_is_one_error(
    section: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "configs/toy/shard.yaml").read_text()
    text = text.replace("split:\n", "").replace("  valid_start", "# ").replace("  test_start", "# ")
    (tmp_path / "shard.yaml").write_text(f"{text}\n{section}\n")
    assert main(["shard", "--config", str(tmp_path / "shard.yaml")]) == 2
    assert "expected a mapping" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("items_per_shard: null", "items_per_shard"),
        ("pictures: {short_side: null}", "pictures.short_side"),
        ("num_workers:", "num_workers"),
    ],
)
def test_null_is_refused_where_it_means_nothing(
    line: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "configs/toy/shard.yaml").read_text().replace("items_per_shard", "# ")
    (tmp_path / "shard.yaml").write_text(f"{text}\n{line}\n")
    assert main(["shard", "--config", str(tmp_path / "shard.yaml")]) == 2
    assert f"error: {name}: found None, expected a value" in capsys.readouterr().err


def test_null_is_taken_where_it_means_none() -> None:
    parser = build_parser()
    given = ["shard", "--config", str(ROOT / "configs/toy/shard.yaml"), "--users", "null"]
    assert parser.instantiate(parser.parse_args(given)).shard.users is None
