"""`make fashion`: pre-train on a week of fashion purchases and rank under both protocols.

    python tests/bench/fashion.py --out_dir runs/fashion

For each of `fashion-cold` and `fashion-all`: the purchases that may be learnt from → data_prep
shard → pretrain features (once, the items are the same) → pretrain fit on two processes → export →
embed → evaluate. It writes metrics.json and report.html into the folder. Every stage that has its
result is skipped, so a run that was stopped goes on; `--stage valid` asks the validation questions
instead, by which settings are to be chosen.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
import fashion_protocol
from fashion_page import page

log = logging.getLogger("fashion")

CONFIGS = Path("configs/fashion")
ZERO = Path("configs/zero2.yaml")
PROTOCOLS: tuple[fashion_protocol.ProtocolName, ...] = ("fashion-cold", "fashion-all")
EASE_L2 = 200.0  # of 50, 200 and 500 the best on the validation of fashion-all


def main() -> None:
    """Run all stages of the chosen protocols."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, default=Path("runs/fashion"))
    parser.add_argument("--data_dir", type=Path, default=Path("data/fashion"))
    parser.add_argument("--stage", choices=("test", "valid"), default="test")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--num_processes", type=int, default=2)
    parser.add_argument("--pretrain", type=Path, default=CONFIGS / "pretrain.yaml")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    source = fashion_protocol.data_dir()
    if not source.is_dir():
        sys.exit(f"{source}: not there; set TRIPTYCH_DATA to the folder that holds hm_fashion_mm")
    os.environ.setdefault("TRIPTYCH_DATA", str(source.parent))
    interactions = fashion_protocol.read_interactions(source)
    items = fashion_protocol.read_items(source, columns=["item_id", "product_code"])
    results: dict[str, dict[str, object]] = {"about": {}}
    for name in args.protocols:
        protocol = fashion_protocol.protocol(name, interactions, items, stage=args.stage)
        label = name if args.stage == "test" else f"{name}-{args.stage}"
        found = run_protocol(
            protocol,
            label=label,
            run_dir=args.out_dir / label,
            data_dir=args.data_dir,
            config=args.pretrain,
            num_processes=args.num_processes,
        )
        results[label] = found[label]
        results["about"] |= found["about"]
    args.out_dir.mkdir(parents=True, exist_ok=True)
    (args.out_dir / "metrics.json").write_text(json.dumps(results, indent=2))
    (args.out_dir / "report.html").write_text(page(results))
    log.info("%s", args.out_dir / "report.html")


def run_protocol(
    protocol: fashion_protocol.Protocol,
    *,
    label: str,
    run_dir: Path,
    data_dir: Path,
    config: Path,
    num_processes: int,
) -> dict[str, dict[str, object]]:
    """Tables → dataset → features → pre-training → release → vectors → figures."""
    tables, dataset_dir, features_dir = run_dir / "tables", data_dir / label, data_dir / "features"
    write_tables(protocol, tables)
    module(
        "data_prep", "shard", "--config", CONFIGS / "shard.yaml", "--name", label,
        "--dataset_dir", dataset_dir, "--interactions.path", tables / "train.parquet",
    )  # fmt: skip
    settings = [
        "--config", config, "--run.dir", run_dir / "pretrain",
        "--data.config.dataset_dir", dataset_dir, "--data.config.features_dir", features_dir,
    ]  # fmt: skip
    if not (features_dir / "features.json").is_file():
        module("pretrain", "features", *settings)
    check_same_settings(config, run_dir=run_dir)
    if not (run_dir / "released" / "config.json").is_file():
        module(
            "torch.distributed.run", "--standalone", "--nproc_per_node", num_processes,
            "-m", "pretrain", "fit", *settings, "--config", ZERO,
        )  # fmt: skip
        module(
            "pretrain", "export", "--run_dir", run_dir / "pretrain", "--checkpoint", "last",
            "--out_dir", run_dir / "released", "--dataset_dir", dataset_dir,
        )  # fmt: skip
    module(
        "pretrain", "embed", "--released", run_dir / "released", "--dataset_dir", dataset_dir,
        "--features_dir", features_dir, "--out_dir", run_dir / "embeddings",
    )  # fmt: skip
    parts = write_raw_parts(run_dir)
    module(
        "pretrain", "evaluate", "--protocol", label,
        "--note", fashion_protocol.NOTES[protocol.name],
        "--train", tables / "train.parquet", "--cases", tables / "cases.parquet",
        "--candidates", tables / "candidates.parquet",
        "--vectors", json.dumps([str(run_dir / "embeddings" / "items.parquet"), str(parts)]),
        "--content", json.dumps(["raw", *pq.read_schema(parts).names[1:]]),
        "--released", run_dir / "released", "--ease_l2", EASE_L2,
        "--out", run_dir / "metrics.json",
    )  # fmt: skip
    found: dict[str, dict[str, object]] = json.loads((run_dir / "metrics.json").read_text())
    return found


def check_same_settings(config: Path, *, run_dir: Path, more: Sequence[str] = ()) -> None:
    """Refuse to go on with a run of other settings: its figures would not be theirs.

    `more` are words that stand behind the config on the command line.
    """
    settings, kept = config.read_text() + ZERO.read_text(), run_dir / "settings.yaml"
    settings += "".join(f"# {word}\n" for word in more)
    if kept.is_file() and kept.read_text() != settings:
        sys.exit(
            f"{run_dir}: found a run of other settings than {config}; remove the folder, or give "
            "another --out_dir"
        )
    kept.write_text(settings)


def write_tables(protocol: fashion_protocol.Protocol, folder: Path) -> None:
    """Write what may be learnt from, what is asked and what is ranked."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(protocol.train, folder / "train.parquet")
    pq.write_table(protocol.cases, folder / "cases.parquet")
    pq.write_table(protocol.candidates, folder / "candidates.parquet")


def write_raw_parts(run_dir: Path) -> Path:
    """Cut the off-the-shelf vectors into those of each modality, for content kNN on each."""
    release = json.loads((run_dir / "released" / "config.json").read_text())
    items = pq.read_table(run_dir / "embeddings" / "items.parquet", columns=["item_id", "raw"])
    raw = items["raw"].combine_chunks()
    raw_NF = raw.flatten().to_numpy().reshape(len(items), -1)
    columns, start = {"item_id": items["item_id"]}, 0
    for modality in release["model"]["towers"]:
        stop = start + release["feature_widths"][modality]
        part = pa.array(raw_NF[:, start:stop].ravel())
        columns[f"raw_{modality}"] = pa.FixedSizeListArray.from_arrays(part, stop - start)
        start = stop
    path = run_dir / "embeddings" / "raw_parts.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def module(name: str, *arguments: object) -> None:
    """Run `python -m name …`; its failure is ours."""
    command = [sys.executable, "-m", name, *map(str, arguments)]
    log.info("python -m %s %s", name, " ".join(command[3:]))
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        sys.exit(f"python -m {name} {command[3]} failed with exit code {done.returncode}")


if __name__ == "__main__":
    main()
