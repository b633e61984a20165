"""What a user can get wrong: one line on stderr, exit code 2, and nothing trained."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.dataset import Dataset
from data_prep.exit_codes import NOT_FINITE
from finetune.cli import build_parser, main
from finetune.run_folder import plain
from finetune.settings import FitConfig, HeadConfig, LadderConfig, TrainConfig

from .conftest import FakeRelease, write_embeddings

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def words(fit_config: FitConfig, tmp_path: Path) -> list[str]:
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump(plain(dataclasses.replace(fit_config, rung="aligned"))))
    return ["fit", "--config", str(path)]


def fails(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


def test_fit_runs_from_a_yaml_file(
    words: list[str], fake_release: FakeRelease, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--train.max_epochs", "1"]) == 0
    assert "aligned, seed 0: test {" in capsys.readouterr().out
    assert main([*words, "--train.max_epochs", "1", "--judged_on", "valid"]) == 0
    assert "aligned, seed 0: valid {" in capsys.readouterr().out


def test_a_model_that_diverges_ends_with_a_code_of_its_own(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = ["--rung", "none", "--train.lr", "1e30", "--train.id_lr", "1e30"]
    assert main([*words, *speeds]) == NOT_FINITE
    assert "training diverged: lower train.lr" in capsys.readouterr().err


def test_an_unknown_key_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "error: head.widht: found a setting that does not exist" in fails(
        capsys, [*words, "--head.widht", "3"]
    )


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("rung", "best"),
        ("head.name", "wide_and_deep"),
        ("train.lr", "-1"),
        ("trust.exposure_k", "0"),
        ("history_length", "-1"),
    ],
)
def test_a_bad_value_names_its_key(
    flag: str, value: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert flag in fails(capsys, [*words, f"--{flag}", value])


def test_a_misspelt_head_is_one_line_with_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", "--head.name", "depfm"]) == 2
    assert capsys.readouterr().err == (
        "error: head.name: found 'depfm', expected one of lr, fm, deepfm, pnn, dcnv2, xdeepfm, "
        "finalmlp, autoint, din, dien, bst, shared_bottom, mmoe, ple, esmm, two_arms; did you mean "
        "deepfm?\n"
    )


def test_a_dataset_that_is_not_there_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = fails(capsys, [*words, "--dataset_dir", str(tmp_path / "nowhere")])
    assert "python -m data_prep shard" in error


@pytest.fixture
def damaged(dataset: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset.dir, tmp_path / "damaged"))


def test_a_dataset_without_its_manifest_is_refused(
    words: list[str], damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (damaged / "manifest.json").unlink()
    assert "incomplete" in fails(capsys, [*words, "--dataset_dir", str(damaged)])


def test_another_schema_is_refused(
    words: list[str], damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damaged / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    assert "99" in fails(capsys, [*words, "--dataset_dir", str(damaged)])


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_an_empty_split_is_refused_before_training(
    split: str, words: list[str], damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damaged / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["counts"][f"impressions_{split}"] = 0
    path.write_text(json.dumps(manifest))
    error = fails(capsys, [*words, "--dataset_dir", str(damaged)])
    assert f"ctr/{split}: found no impressions" in error


def test_labels_that_are_no_clicks_are_refused(
    words: list[str], damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next((damaged / "ctr" / "train").glob("*.parquet"))
    table = pq.read_table(path)
    ratings = pa.array([3.5] * table.num_rows, pa.float32())
    column = table.column_names.index("label")
    pq.write_table(table.set_column(column, "label", ratings), path)
    assert "expected 0 and 1" in fails(capsys, [*words, "--dataset_dir", str(damaged)])


def test_a_release_that_has_seen_the_validation_time_is_refused(
    words: list[str],
    fake_release: FakeRelease,
    dataset: Dataset,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_release.newest_event = dataset.manifest.cutoffs.valid_start
    assert "--allow_look_ahead true" in fails(capsys, words)
    assert main([*words, "--allow_look_ahead", "true", "--train.max_epochs", "1"]) == 0


def test_embeddings_that_have_seen_the_validation_time_are_refused(
    words: list[str],
    fake_release: FakeRelease,
    dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_embeddings(
        tmp_path / "late",
        dataset.items["item_id"],
        newest_event=dataset.manifest.cutoffs.valid_start,
    )
    assert "tested on" in fails(capsys, [*words, "--embeddings_dir", str(folder)])


def test_vectors_of_other_items_are_refused(
    words: list[str], dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = pa.chunked_array([dataset.items["item_id"].to_numpy() + 1])
    folder = write_embeddings(tmp_path / "other", ids, newest_event=0)
    assert "that are not the" in fails(capsys, [*words, "--embeddings_dir", str(folder)])


def test_a_knock_out_is_refused(
    words: list[str], embeddings_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(embeddings_dir, tmp_path / "blind")
    about = json.loads((folder / "embeddings.json").read_text())
    (folder / "embeddings.json").write_text(json.dumps(about | {"without": ["image"]}))
    found = fails(capsys, [*words, "--embeddings_dir", str(folder)])
    assert "found a knock-out, vectors without ['image']" in found


def test_vectors_of_another_release_are_refused(
    words: list[str], fake_release: FakeRelease, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_release.fingerprint = "another"
    assert "found vectors of release fake" in fails(capsys, words)


def test_a_rung_names_the_folder_it_lacks(
    words: list[str], fit_config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "embeddings.json" in fails(capsys, [*words, "--embeddings_dir", str(tmp_path)])
    assert "pretrain export" in fails(capsys, [*words, "--released", "null"])


def test_a_folder_that_is_no_release_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no released checkpoint" in fails(capsys, [*words, "--released", str(tmp_path)])


def test_predict_and_report_name_a_folder_that_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--impressions", "x.parquet", "--out", "y.parquet"]
    assert "no finished run" in fails(capsys, ["predict", "--run_dir", str(tmp_path), *words])
    assert "no finished run" in fails(capsys, ["report", "--run_dir", str(tmp_path)])
    (tmp_path / "metrics.json").write_text('{"rungs": {}}')
    said = fails(capsys, ["predict", "--run_dir", str(tmp_path), *words])
    assert "found a ladder's folder, expected one of its runs" in said


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("ladder.yaml")), ids=str)
def test_every_ladder_file_parses(path: Path) -> None:
    parsed = build_parser().parse_args(["ladder", "--config", str(path)])
    assert len(parsed.ladder.seeds) >= 3


def test_the_toy_file_of_fit_parses() -> None:
    path = CONFIGS / "toy" / "finetune.yaml"
    assert build_parser().parse_args(["fit", "--config", str(path)]).fit.rung == "aligned"


def test_help_explains_every_key_and_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom finetune.cli import main\n"
        "try:\n    main(['ladder', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=CONFIGS.parent,
    ).stdout  # fmt: skip
    assert "Latest positive events strictly before an impression" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        (HeadConfig, {"dropout": 1.0}),
        (HeadConfig, {"hidden": (0,)}),
        (HeadConfig, {"low_rank": 0}),
        (HeadConfig, {"num_heads": 0}),
        (HeadConfig, {"cin_hidden": ()}),
        (HeadConfig, {"embedding_width": 9, "name": "bst"}),
        (HeadConfig, {"hidden": (), "name": "finalmlp"}),
        (HeadConfig, {"second_hidden": (8, 5), "name": "finalmlp"}),
        (TrainConfig, {"id_epochs": 0}),
        (TrainConfig, {"id_l2": -1.0}),
        (LadderConfig, {"rungs": ("raw",)}),
        (LadderConfig, {"seeds": (1, 1)}),
    ],
)
def test_settings_check_their_ranges(settings: type, changes: dict) -> None:
    needed = {"dataset_dir": Path("d"), "out_dir": Path("o")} if settings is LadderConfig else {}
    with pytest.raises(ValueError, match=next(iter(changes))):
        settings(**needed, **changes)
