"""Show `quality_fashion`: one released model against content kNN on cold products and EASE on all.

    python tests/bench/quality_fashion.py --out_dir runs/quality/fashion

Training may use only what both protocols of PROTOCOL.md allow at once: neither a purchase of a cold
product nor a held-out one. data_prep shard → pretrain features → then for each seed pretrain fit →
export → embed → evaluate twice, with the same release. What is there already is kept, so that a run
that was stopped goes on. The last line is one JSON object. Time is known by day only: neither
protocol is free of look-ahead.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import fashion_protocol
from fashion import EASE_L2, check_same_settings, module, write_tables
from quality_summary import over_seeds, ratio

from pretrain.word_vectors import word_vectors, words_of

log = logging.getLogger("quality_fashion")

CONFIGS = Path("configs")
WORD_WIDTH = 192
IMAGE_SHARE = 0.7  # of 0.5, 0.7 and 1 the best for content kNN on the validation of fashion-cold
Floats = NDArray[np.float32]


def main() -> None:
    """Run every seed and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, default=Path("runs/quality/fashion"))
    parser.add_argument("--data_dir", type=Path, default=Path("data/quality"))
    parser.add_argument(
        "--config", type=Path, default=CONFIGS / "quality_fashion" / "pretrain.yaml"
    )
    parser.add_argument("--stage", choices=("test", "valid"), default="test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    source = fashion_protocol.data_dir()
    if not source.is_dir():
        sys.exit(f"{source}: not there; set TRIPTYCH_DATA to the folder that holds hm_fashion_mm")
    os.environ.setdefault("TRIPTYCH_DATA", str(source.parent))
    interactions = fashion_protocol.read_interactions(source)
    items = fashion_protocol.read_items(source, columns=["item_id", "product_code"])
    protocols = {
        name: fashion_protocol.protocol(name, interactions, items, stage=args.stage)
        for name in ("fashion-cold", "fashion-all")
    }
    run_dir, dataset_dir = args.out_dir / args.stage, args.data_dir / f"fashion_{args.stage}"
    features_dir = args.data_dir / "fashion_features"
    prepare(source, protocols, run_dir=run_dir, dataset_dir=dataset_dir)
    check_same_settings(args.config, run_dir=run_dir)
    found = [
        one_seed(
            seed,
            protocols,
            config=args.config,
            run_dir=run_dir,
            dataset_dir=dataset_dir,
            features_dir=features_dir,
        )
        for seed in args.seeds
    ]
    print(json.dumps(summary(found, stage=args.stage)))


def common_training(protocols: dict[str, fashion_protocol.Protocol]) -> pa.Table:
    """Purchases that every protocol allows to learn from, in the order of the first."""
    first, *others = (protocol.train for protocol in protocols.values())
    key = _pair(first)
    for other in others:
        key = key.filter(pc.is_in(key, value_set=_pair(other)))
    return first.filter(pc.is_in(_pair(first), value_set=key))


def _pair(table: pa.Table) -> pa.Array:
    """User and item of each purchase as one string; no pair occurs twice."""
    parts = (table[name].combine_chunks().cast(pa.string()) for name in ("user_id", "item_id"))
    return pc.binary_join_element_wise(*parts, ":")


def prepare(
    source: Path,
    protocols: dict[str, fashion_protocol.Protocol],
    *,
    run_dir: Path,
    dataset_dir: Path,
) -> None:
    """Tables of the protocols, the catalogue with word vectors, and the dataset of both."""
    for name, protocol in protocols.items():
        write_tables(protocol, run_dir / "tables" / name)
    tables = run_dir / "tables"
    pq.write_table(common_training(protocols), tables / "train.parquet")
    items = pq.read_table(source / "items.parquet").sort_by("item_id")
    fields = {name: items[name].to_pylist() for name in fashion_protocol.TEXT_FIELDS}
    documents = [
        words_of(dict(zip(fields, texts, strict=True)), prose=frozenset({"description"}))
        for texts in zip(*fields.values(), strict=True)
    ]
    vectors = word_vectors(documents, width=WORD_WIDTH)
    items = items.append_column("words", vector_column(vectors))
    pq.write_table(items, tables / "items.parquet", row_group_size=512)
    module(
        "data_prep", "shard", "--config", CONFIGS / "fashion" / "shard.yaml",
        "--name", dataset_dir.name, "--dataset_dir", dataset_dir,
        "--interactions.path", tables / "train.parquet", "--items.path", tables / "items.parquet",
        "--items.vectors", json.dumps({"words": "words"}),
    )  # fmt: skip


def one_seed(
    seed: int,
    protocols: dict[str, fashion_protocol.Protocol],
    *,
    config: Path,
    run_dir: Path,
    dataset_dir: Path,
    features_dir: Path,
) -> dict[str, dict[str, Any]]:
    """Train one release and ask it both protocols: {protocol: {system: figures}}."""
    seed_dir, tables = run_dir / f"seed-{seed}", run_dir / "tables"
    released, embeddings = seed_dir / "released", seed_dir / "embeddings"
    settings = [
        "--config", config, "--seed_everything", seed, "--data.config.seed", seed,
        "--run.dir", seed_dir / "pretrain", "--data.config.dataset_dir", dataset_dir,
        "--data.config.features_dir", features_dir,
    ]  # fmt: skip
    if not (features_dir / "features.json").is_file():
        module("pretrain", "features", *settings)
    if not (released / "config.json").is_file():
        module("pretrain", "fit", *settings)
        module(
            "pretrain", "export", "--run_dir", seed_dir / "pretrain", "--checkpoint", "last",
            "--out_dir", released, "--dataset_dir", dataset_dir,
        )  # fmt: skip
    module(
        "pretrain", "embed", "--released", released, "--dataset_dir", dataset_dir,
        "--features_dir", features_dir, "--out_dir", embeddings,
    )  # fmt: skip
    vectors, content = [str(embeddings / "items.parquet")], []
    if seed == 0:  # references do not depend on the seed
        parts = write_content(released, embeddings)
        vectors, content = [*vectors, str(parts)], pq.read_schema(parts).names[1:]
    result: dict[str, dict[str, Any]] = {}
    for name in protocols:
        baselines = ["popularity", "ease"] if seed == 0 and name == "fashion-all" else []
        out = seed_dir / f"{name}.json"
        module(
            "pretrain", "evaluate", "--protocol", name,
            "--note", fashion_protocol.NOTES[protocols[name].name],
            "--train", tables / name / "train.parquet", "--cases", tables / name / "cases.parquet",
            "--candidates", tables / name / "candidates.parquet", "--vectors", json.dumps(vectors),
            "--content", json.dumps(content), "--released", released,
            "--baselines", json.dumps(baselines), "--ease_l2", EASE_L2, "--out", out,
        )  # fmt: skip
        result[name] = json.loads(out.read_text())[name]
    return result


def write_content(released: Path, embeddings: Path) -> Path:
    """Vectors for content kNN: each modality as it is and standardised, and their concatenations.

    A standardised one has mean 0 and spread 1 in every feature over the items that have it.
    """
    release = json.loads((released / "config.json").read_text())
    items = pq.read_table(embeddings / "items.parquet", columns=["item_id", "raw"])
    raw_NF = items["raw"].combine_chunks().flatten().to_numpy().reshape(len(items), -1)
    columns: dict[str, Floats] = {}
    start = 0
    for modality in release["model"]["towers"]:
        stop = start + release["feature_widths"][modality]
        columns[f"raw_{modality}"] = raw_NF[:, start:stop]
        columns[f"standard_{modality}"] = standardised(raw_NF[:, start:stop])
        start = stop
    for kind in ("raw", "standard"):
        pair = [columns[f"{kind}_text"], IMAGE_SHARE * columns[f"{kind}_image"]]
        columns[f"{kind}_text_image"] = np.concatenate(pair, axis=1)
        everything = [*pair, columns[f"{kind}_words"]]
        columns[f"{kind}_text_image_words"] = np.concatenate(everything, axis=1)
    columns["raw_text_image_even"] = np.concatenate(
        [columns["raw_text"], columns["raw_image"]], axis=1
    )
    path = embeddings / "content.parquet"
    table = {name: vector_column(vectors) for name, vectors in columns.items()}
    pq.write_table(pa.table({"item_id": items["item_id"], **table}), path)
    return path


def standardised(unit_NF: Floats) -> Floats:
    """Mean 0 and spread 1 a feature, then unit length; rows of zeros (absent) stay so."""
    present_N = np.any(unit_NF != 0, axis=1)
    mean_F, std_F = unit_NF[present_N].mean(0), unit_NF[present_N].std(0)
    standard_NF = np.where(present_N[:, None], (unit_NF - mean_F) / (std_F + 1e-6), 0)
    norm_N1 = np.linalg.norm(standard_NF, axis=1, keepdims=True)
    return np.asarray(standard_NF / np.maximum(norm_N1, 1e-9), np.float32)


def vector_column(vectors_NF: Floats) -> pa.FixedSizeListArray:
    """[N, F] as one list of F numbers a row."""
    flat = pa.array(np.ascontiguousarray(vectors_NF, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, vectors_NF.shape[1])


def summary(found: list[dict[str, dict[str, Any]]], *, stage: str) -> dict[str, Any]:
    """The figures of the Show: ours over the seeds, the references, and their ratios."""
    recall = "recall@20"
    ours = {
        name: over_seeds([one[name]["ours"] for one in found], metric=recall) for name in found[0]
    }
    cold, everything = found[0]["fashion-cold"], found[0]["fashion-all"]
    knn = {name: values[recall] for name, values in cold.items() if name.startswith("content_knn")}
    pair = max((name for name in knn if name.endswith(("text_image", "even"))), key=knn.__getitem__)
    words = max((name for name in knn if name.endswith("words")), key=knn.__getitem__)
    ease = everything["ease"][recall]
    return {
        "name": "quality_fashion",
        "stage": stage,
        "unit": recall,
        "reading": "one released model serves both protocols",
        "ours": ours,
        "peers": {
            "text_knn_cold": knn["content_knn_raw_text"],
            "content_knn_cold": knn[pair],
            "content_knn_cold_best": pair,
            "content_words_knn_cold": knn[words],
            "best_id_all": ease,
            "fashion-cold": knn,
            "fashion-all": {name: values[recall] for name, values in everything.items()},
        },
        "ratio": {
            "text_knn_cold": ratio(ours["fashion-cold"], knn["content_knn_raw_text"]),
            "content_knn_cold": ratio(ours["fashion-cold"], knn[pair]),
            "content_words_knn_cold": ratio(ours["fashion-cold"], knn[words]),
            "best_id_all": ratio(ours["fashion-all"], ease),
        },
    }


if __name__ == "__main__":
    main()
