"""Our CTR heads against FuxiCTR's on short videos: AUC ours - theirs, one key a head and label.

    python tests/bench/ctr_parity.py

The protocol is `video-ctr`. Both sides get the same integers and numbers (fuxictr_table.py), the
same sizes, scale of vectors at the start, batches, patience and number of epochs; each keeps the
weights of its best epoch by validation AUC and scores the test once. Theirs is dense Adam, whose
momentum moves a vector on for many steps after it was read; ours is row-sparse, which moves it once
a reading and so has twice the rate (`id_lr`). On validation with two seeds, at the same rate,
DCN-V2 was 0.001 to 0.002 below theirs with row-sparse Adam and level with dense; twice helps all
four heads. FuxiCTR has one rate for everything, the 1e-3 that both have here; 2e-3 gave its DCN-V2
and DeepFM up to 0.002 more.

Neither has dropout or an L2 penalty. Penalties differ in kind (FuxiCTR's is on the whole table at
every step, ours on the rows of a batch), and on validation (`--stage valid`, which leaves the test
alone; DeepFM, is_click, seed 0) none of 1e-6 to 1e-3 gave FuxiCTR, and none of 1e-3 to 0.1 gave
ours, more than 0.0001 AUC: ids are past their best after one epoch. `--embedding_l2` sets both.
Finished runs are kept: a stopped benchmark goes on.
The bar is a difference of at least -0.001. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import video_ctr
from fuxictr_table import write_tables
from interleaved import Case, run_once
from peer_environments import REQUIREMENTS, peer_python

from data_prep.dataset import Dataset, open_dataset
from data_prep.records import Split
from finetune import run_folder
from finetune.data import CtrData
from finetune.fit import Inputs, fit
from finetune.metrics import auc
from finetune.settings import FitConfig, HeadConfig, InputConfig, TrainConfig, TrainerConfig
from finetune.task_settings import TaskConfig

log = logging.getLogger("ctr_parity")

HEADS = ("deepfm", "dcnv2", "pnn", "din")
LABELS = {"is_click": "label", "long_view": "long_view"}
"""Column of each in the dataset's impressions."""
SIDES = ("ours", "fuxictr")
BAR = -0.001
PRIOR_IMPRESSIONS = 10
PEER_SCRIPT = Path(__file__).parent / "fuxictr_heads.py"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What both sides are given."""

    embedding_width: int = 16
    embedding_std: float = 1e-4
    """Of the vectors at the start; FuxiCTR's default."""
    hidden: tuple[int, ...] = (128, 64)
    attention_hidden: tuple[int, ...] = (32,)
    """DIN's activation unit."""
    cross_layers: int = 2
    """DCN-V2's cross layers."""
    batch_size: int = 1024
    lr: float = 1e-3
    """Adam's rate, of everything but our vectors."""
    id_lr: float = 2e-3
    """Of our vectors."""
    max_epochs: int = 10
    patience: int = 2
    """Epochs without a better validation AUC before training stops."""
    embedding_l2: float = 0.0
    """Penalty on embeddings, each side in its own form."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training."""

    side: str
    label: str
    head: str
    seed: int
    settings: Settings

    @property
    def name(self) -> str:
        """Where it is kept."""
        l2 = f"l2-{self.settings.embedding_l2:g}"
        return f"{self.label}/{self.head}/{self.side}-{l2}-seed-{self.seed}"


@dataclass
class Bench:
    """Data of both sides, and the folder of finished runs."""

    bench_dir: Path
    dataset: Dataset
    tables: Path
    splits: tuple[Split, ...]
    """Which are scored."""

    @staticmethod
    def open(bench_dir: Path, *, dataset_dir: Path, splits: tuple[Split, ...]) -> Bench:
        """Make the dataset and the tables where they are not there."""
        video_ctr.prepare(video_ctr.data_dir(), dataset_dir=dataset_dir)
        dataset = open_dataset(dataset_dir)
        tables = bench_dir / "ctr_parity" / "tables"
        if not (tables / "feature_map.json").is_file():
            data = CtrData.learn(dataset, InputConfig(dataset_dir=dataset_dir))
            write_tables(data, tables, labels=LABELS)
        return Bench(bench_dir, dataset, tables, splits)

    @cached_property
    def inputs(self) -> Inputs:
        """Our impressions with all their labels, read once."""
        return Inputs.open(InputConfig(dataset_dir=self.dataset.dir))

    def label_of(self, run: Run, split: Split) -> NDArray[np.float32]:
        """Labels of a split, in the order of the scores."""
        column = LABELS[run.label]
        table = self.dataset.impressions(split, columns=[column])
        return table[column].to_numpy().astype(np.float32)

    def result(self, run: Run) -> dict[str, Any]:
        """What a run found, trained if it was not yet."""
        path = self.bench_dir / "ctr_parity" / self.splits[-1] / f"{run.name}.json"
        wanted = {"settings": json.loads(json.dumps(asdict(run.settings)))}
        if path.is_file():
            kept: dict[str, Any] = json.loads(path.read_text())
            if kept["settings"] != wanted["settings"]:
                sys.exit(f"{path}: found a run of other settings; remove it or give --bench_dir")
            return kept
        path.parent.mkdir(parents=True, exist_ok=True)
        found = self._ours(run, path) if run.side == "ours" else self._fuxictr(run, path)
        run_folder.write_json(found | wanted, path)
        log.info("%s: validation AUC %.4f, %s", run.name, found["valid_auc"], _pace(found))
        return found | wanted

    def _ours(self, run: Run, path: Path) -> dict[str, Any]:
        s = run.settings
        config = FitConfig(
            dataset_dir=self.dataset.dir,
            out_dir=path.with_suffix(""),
            tasks={LABELS[run.label]: TaskConfig()},
            seed=run.seed,
            judged_on=self.splits[-1],  # type: ignore[arg-type]
            head=HeadConfig(
                name=run.head,  # type: ignore[arg-type]
                embedding_width=s.embedding_width,
                id_std=s.embedding_std,
                hidden=s.hidden,
                dropout=0.0,
                cross_layers=s.cross_layers,
                attention_hidden=s.attention_hidden,
            ),
            train=TrainConfig(
                batch_size=s.batch_size,
                max_epochs=s.max_epochs,
                patience=s.patience,
                lr=s.lr,
                id_lr=s.id_lr,
                weight_decay=0.0,
                id_l2=s.embedding_l2,
                id_dropout=0.0,
            ),
            trainer=TrainerConfig(accelerator="cpu", progress="none"),
        )
        start = time.process_time()
        record = fit(config, self.inputs)
        return {
            "valid_auc": record["valid"]["val/auc"],
            f"{self.splits[-1]}_auc": record["test"]["auc"],
            "epochs": record["epochs"],
            "parameters": record["parameters"],
            "cpu_s": time.process_time() - start,
        }

    def _fuxictr(self, run: Run, path: Path) -> dict[str, Any]:
        scores = path.with_suffix(".npz")
        given = asdict(run.settings) | {
            "tables": str(self.tables.resolve()),
            "head": run.head,
            "label": run.label,
            "seed": run.seed,
            "scores": str(scores.resolve()),
            "splits": self.splits,
        }
        python = peer_python("fuxictr", bench_dir=self.bench_dir)
        case = Case(
            name=run.name, python=python, script=PEER_SCRIPT, arguments=(json.dumps(given),)
        )
        found = run_once(case)
        with np.load(scores) as of_split:
            for split in self.splits:
                found[f"{split}_auc"] = auc(self.label_of(run, split), of_split[split])
        scores.unlink()
        return found


def _pace(found: dict[str, Any]) -> str:
    return f"{found['epochs']} epochs, {found['cpu_s']:.0f} CPU s"


def smoothed_means(dataset: Dataset, column: str) -> float:
    """Test AUC of item, user, tab and hour as added log-odds: the protocol's plain reference.

    Rates are those of train and validation, drawn to the mean by `PRIOR_IMPRESSIONS`.
    """
    past = pa.concat_tables([dataset.impressions("train"), dataset.impressions("valid")])
    test = dataset.impressions("test")
    outcome_N = past[column].to_numpy().astype(np.float64)
    score_N = np.zeros(test.num_rows)
    for name in ("item_row", "user_row", "tab", "hour"):
        values = np.concatenate([table[name].to_numpy(zero_copy_only=False)
                                 for table in (past, test)]).astype(str)  # fmt: skip
        _, index = np.unique(values, return_inverse=True)
        before, now = index[: past.num_rows], index[past.num_rows :]
        shown = np.bincount(before, minlength=index.max() + 1) + PRIOR_IMPRESSIONS
        chosen = np.bincount(before, weights=outcome_N, minlength=index.max() + 1)
        rate = (chosen + PRIOR_IMPRESSIONS * outcome_N.mean()) / shown
        score_N += np.log(rate / (1 - rate))[now]
    return auc(test[column].to_numpy(), score_N)


def outcome(
    found: dict[tuple[str, str, str], list[dict[str, Any]]], *, split: Split
) -> dict[str, Any]:
    """The last line: under a head and label the mean AUC of the seeds, and ours - theirs."""
    aucs = {key: [one[f"{split}_auc"] for one in runs] for key, runs in found.items()}
    cases = list(dict.fromkeys((head, label) for head, label, _ in found))
    name = {case: "_".join(case) for case in cases}
    pairs = {case: (aucs[*case, "ours"], aucs[*case, "fuxictr"]) for case in cases}
    difference = {
        case: [ours - theirs for ours, theirs in zip(*pair, strict=True)]
        for case, pair in pairs.items()
    }
    ratio = {name[case]: statistics.mean(values) for case, values in difference.items()}
    return _rounded(
        {
            "name": "ctr_parity",
            "unit": f"{split} AUC, ratio: ours - theirs",
            "ours": {name[case]: statistics.mean(pair[0]) for case, pair in pairs.items()},
            "peers": {
                "fuxictr": {name[case]: statistics.mean(pair[1]) for case, pair in pairs.items()}
            },
            "ratio": ratio,
            "by_seed": {name[case]: values for case, values in difference.items()},
            "bar": BAR,
            "met": {key: value >= BAR for key, value in ratio.items()},
            "seeds": len(next(iter(aucs.values()))),
            "epochs": {
                "_".join(key): [one["epochs"] for one in runs] for key, runs in found.items()
            },
            "cpu_s": {
                "_".join(key): statistics.mean(one["cpu_s"] for one in runs)
                for key, runs in found.items()
            },
            "settings": {
                "_".join(key): runs[0]["settings"]["embedding_l2"] for key, runs in found.items()
            },
            "versions": {"fuxictr": REQUIREMENTS["fuxictr"].partition("==")[2]},
        }
    )


def _rounded(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


def main() -> None:
    """Run what is missing, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench_dir", type=Path, default=Path("build/bench"))
    parser.add_argument("--dataset_dir", type=Path, default=video_ctr.DATASET_DIR)
    parser.add_argument("--stage", choices=("test", "valid"), default="test")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--labels", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--embedding_l2", type=float, nargs=2, metavar=SIDES, default=[0.0, 0.0])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    splits: tuple[Split, ...] = ("valid",) if args.stage == "valid" else ("valid", "test")
    bench = Bench.open(args.bench_dir, dataset_dir=args.dataset_dir, splits=splits)
    strengths = dict(zip(SIDES, args.embedding_l2, strict=True))
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for label in args.labels:
            for head in args.heads:
                for side in SIDES:
                    settings = replace(Settings(), embedding_l2=strengths[side])
                    run = Run(side=side, label=label, head=head, seed=seed, settings=settings)
                    found.setdefault((head, label, side), []).append(bench.result(run))
    line = outcome(found, split=splits[-1])
    if args.stage == "test":
        line["others"] = {
            f"smoothed_means_{label}": round(smoothed_means(bench.dataset, LABELS[label]), 5)
            for label in args.labels
        }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
