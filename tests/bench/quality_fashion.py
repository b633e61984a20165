"""Show `quality_fashion`: one released model against content kNN on cold products and EASE on all.

    python tests/bench/quality_fashion.py --out_dir runs/quality/fashion

Training may use only what both protocols of PROTOCOL.md allow at once: neither a purchase of a cold
product nor a held-out one. data_prep shard → pretrain features → then for each seed pretrain fit →
export → embed → evaluate twice, with the same release. `ours` is that release and one blend
(`pretrain blend`), learnt on the validation of both protocols; what it knows of behaviour beside
the release is the training of the protocol that asks, as EASE does. `release` is the release alone.
`--stage valid` asks the validation's odd users with a blend learnt on its even ones, by which
settings are chosen. What is there already is kept, so that a run that was stopped goes on. The last
line is one JSON object. Time is known by day only: neither protocol is free of look-ahead.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import dataclass
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
from quality_content import raw_modalities, vector_column, write_vectors
from quality_summary import over_seeds, ratio

from pretrain.blend_signals import standardised
from pretrain.word_vectors import word_vectors, words_of

log = logging.getLogger("quality_fashion")

CONFIGS = Path("configs")
WORD_WIDTH = 192
IMAGE_SHARE = 0.7  # of 0.5, 0.7 and 1 the best for content kNN on the validation of fashion-cold
BLENDED = ["raw_text", "raw_words", "raw_image"]
PROTOCOLS: tuple[fashion_protocol.ProtocolName, ...] = ("fashion-cold", "fashion-all")
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where one stage keeps its files."""

    run_dir: Path
    dataset_dir: Path
    features_dir: Path
    config: Path
    protocols: dict[fashion_protocol.ProtocolName, fashion_protocol.Protocol]


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
    args.out_dir.mkdir(parents=True, exist_ok=True)
    check_same_settings(args.config, run_dir=args.out_dir)

    def opened(stage: fashion_protocol.Stage) -> Folders:
        return open_stage(
            stage,
            run_dir=args.out_dir / stage,
            dataset_dir=args.data_dir / f"fashion_{stage}",
            config=args.config,
        )

    valid = opened("valid")
    weights, control = (
        learn_blend(valid, some_users=args.stage == "valid", with_release=release)
        for release in (True, False)
    )
    where = valid if args.stage == "valid" else opened("test")
    found = [
        one_seed(seed, where, blend_file=weights, control=control, odd_users=args.stage == "valid")
        for seed in args.seeds
    ]
    print(json.dumps(summary(found, stage=args.stage)))


def open_stage(
    stage: fashion_protocol.Stage, *, run_dir: Path, dataset_dir: Path, config: Path
) -> Folders:
    """Both protocols of a stage, with their tables and dataset; features lie beside datasets."""
    source = fashion_protocol.data_dir()
    if not source.is_dir():
        sys.exit(f"{source}: not there; set TRIPTYCH_DATA to the folder that holds hm_fashion_mm")
    os.environ.setdefault("TRIPTYCH_DATA", str(source.parent))
    interactions = fashion_protocol.read_interactions(source)
    items = fashion_protocol.read_items(source, columns=["item_id", "product_code"])
    protocols = {
        name: fashion_protocol.protocol(name, interactions, items, stage=stage)
        for name in PROTOCOLS
    }
    prepare(source, protocols, run_dir=run_dir, dataset_dir=dataset_dir)
    return Folders(
        run_dir=run_dir,
        dataset_dir=dataset_dir,
        features_dir=dataset_dir.with_name("fashion_features"),
        config=config,
        protocols=protocols,
    )


def common_training(
    protocols: dict[fashion_protocol.ProtocolName, fashion_protocol.Protocol],
) -> pa.Table:
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
    protocols: dict[fashion_protocol.ProtocolName, fashion_protocol.Protocol],
    *,
    run_dir: Path,
    dataset_dir: Path,
) -> None:
    """Tables of the protocols, the catalogue with word vectors, and the dataset of both."""
    if (dataset_dir / "manifest.json").is_file() and (run_dir / "tables").is_dir():
        return
    for name, protocol in protocols.items():
        write_tables(protocol, run_dir / "tables" / name)
    tables, items = run_dir / "tables", dataset_dir.with_name("fashion_items.parquet")
    pq.write_table(common_training(protocols), tables / "train.parquet")
    write_items(source, items)
    module(
        "data_prep", "shard", "--config", CONFIGS / "fashion" / "shard.yaml",
        "--name", dataset_dir.name, "--dataset_dir", dataset_dir,
        "--interactions.path", tables / "train.parquet", "--items.path", items,
        "--items.vectors", json.dumps({"words": "words"}),
    )  # fmt: skip


def write_items(source: Path, path: Path) -> None:
    """The catalogue with word vectors, once for both stages, so that features are made once."""
    if path.is_file():
        return
    items = pq.read_table(source / "items.parquet").sort_by("item_id")
    fields = {name: items[name].to_pylist() for name in fashion_protocol.TEXT_FIELDS}
    documents = [
        words_of(dict(zip(fields, texts, strict=True)), prose=frozenset({"description"}))
        for texts in zip(*fields.values(), strict=True)
    ]
    vectors = word_vectors(documents, width=WORD_WIDTH)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(items.append_column("words", vector_column(vectors)), path, row_group_size=512)


def run_settings(where: Folders, *, run_dir: Path, seed: int) -> list[object]:
    """Words of `pretrain features` and `pretrain fit`."""
    return [
        "--config", where.config, "--seed_everything", seed, "--data.config.seed", seed,
        "--run.dir", run_dir, "--data.config.dataset_dir", where.dataset_dir,
        "--data.config.features_dir", where.features_dir,
    ]  # fmt: skip


def train_release(where: Folders, *, seed: int) -> tuple[Path, Path]:
    """Train, release and embed: the folders of the release and of its vectors."""
    seed_dir = where.run_dir / f"seed-{seed}"
    released, embeddings = seed_dir / "released", seed_dir / "embeddings"
    settings = run_settings(where, run_dir=seed_dir / "pretrain", seed=seed)
    if not (where.features_dir / "features.json").is_file():
        module("pretrain", "features", *settings)
    if not (released / "config.json").is_file():
        module("pretrain", "fit", *settings)
        module(
            "pretrain", "export", "--run_dir", seed_dir / "pretrain", "--checkpoint", "last",
            "--out_dir", released, "--dataset_dir", where.dataset_dir,
        )  # fmt: skip
    if not (embeddings / "content.parquet").is_file():
        module(
            "pretrain", "embed", "--released", released, "--dataset_dir", where.dataset_dir,
            "--features_dir", where.features_dir, "--out_dir", embeddings,
        )  # fmt: skip
        write_content(released, embeddings)
    return released, embeddings


def learn_blend(valid: Folders, *, some_users: bool, with_release: bool = True) -> Path:
    """One blend for both protocols; from the even users only where the odd ones are asked.

    Without the release it is the control: what behaviour and content do without pre-training.
    """
    users, systems = "_even_users" if some_users else "", "" if with_release else "_control"
    out = valid.run_dir / f"blend{systems}{users}.json"
    if not out.is_file():
        released, embeddings = train_release(valid, seed=0)
        questions = []
        for name in PROTOCOLS:
            tables = valid.run_dir / "tables" / name
            cases = of_users(tables, odd=False) if some_users else tables / "cases.parquet"
            questions.append(
                {
                    "cases": str(cases),
                    "train": str(tables / "train.parquet"),
                    "candidates": str(tables / "candidates.parquet"),
                }
            )
        vectors = [str(embeddings / "items.parquet"), str(embeddings / "content.parquet")]
        module(
            "pretrain", "blend", "--questions", json.dumps(questions), "--out", out,
            "--vectors", json.dumps(vectors), *(("--released", released) if with_release else ()),
            "--signals.content", json.dumps(BLENDED), "--signals.ease_l2", EASE_L2,
        )  # fmt: skip
    return out


def of_users(tables: Path, *, odd: bool) -> Path:
    """The cases of every other user, as a file beside those of all."""
    path = tables / f"cases_{'odd' if odd else 'even'}.parquet"
    cases = pq.read_table(tables / "cases.parquet")
    pq.write_table(cases.filter(pa.array(np.arange(len(cases)) % 2 == odd)), path)
    return path


def one_seed(
    seed: int, where: Folders, *, blend_file: Path, control: Path, odd_users: bool
) -> dict[str, dict[str, Any]]:
    """Train one release and ask it both protocols: {protocol: {system: figures}}.

    What does not depend on the seed is ranked with the first one only.
    """
    released, embeddings = train_release(where, seed=seed)
    vectors = [str(embeddings / "items.parquet"), str(embeddings / "content.parquet")]
    content = pq.read_schema(embeddings / "content.parquet").names[1:] if seed == 0 else []
    result: dict[str, dict[str, Any]] = {}
    for name in PROTOCOLS:
        tables, out = where.run_dir / "tables" / name, where.run_dir / f"seed-{seed}"
        asked = (
            "pretrain", "evaluate", "--protocol", name,
            "--note", fashion_protocol.NOTES[where.protocols[name].name],
            "--train", tables / "train.parquet",
            "--cases", of_users(tables, odd=True) if odd_users else tables / "cases.parquet",
            "--candidates", tables / "candidates.parquet", "--vectors", json.dumps(vectors),
            "--ease_l2", EASE_L2,
        )  # fmt: skip
        baselines = ["popularity", "ease"] if seed == 0 and name == "fashion-all" else []
        module(
            *asked, "--content", json.dumps(content), "--baselines", json.dumps(baselines),
            "--released", released, "--blend", blend_file, "--out", out / f"{name}.json",
        )  # fmt: skip
        result[name] = json.loads((out / f"{name}.json").read_text())[name]
        if seed == 0:
            written = out / f"{name}-control.json"
            module(
                *asked, "--content", "[]", "--baselines", "[]", "--blend", control,
                "--out", written,
            )  # fmt: skip
            found = json.loads(written.read_text())[name]["ours_blended"]
            result[name]["blend_without_release"] = found
    return result


def write_content(released: Path, embeddings: Path) -> Path:
    """Vectors for content kNN: each modality as it is and standardised, and their concatenations.

    A standardised one has mean 0 and spread 1 in every feature over the items that have it.
    """
    item_id, raw = raw_modalities(released, embeddings)
    columns: dict[str, Floats] = {}
    for modality, vectors in raw.items():
        columns[f"raw_{modality}"] = vectors
        columns[f"standard_{modality}"] = standardised(vectors)
    for kind in ("raw", "standard"):
        pair = [columns[f"{kind}_text"], IMAGE_SHARE * columns[f"{kind}_image"]]
        columns[f"{kind}_text_image"] = np.concatenate(pair, axis=1)
        everything = [*pair, columns[f"{kind}_words"]]
        columns[f"{kind}_text_image_words"] = np.concatenate(everything, axis=1)
    columns["raw_text_image_even"] = np.concatenate(
        [columns["raw_text"], columns["raw_image"]], axis=1
    )
    return write_vectors(embeddings / "content.parquet", item_id, columns)


def summary(found: list[dict[str, dict[str, Any]]], *, stage: str) -> dict[str, Any]:
    """The figures of the Show: ours over the seeds, the references, and their ratios."""
    recall = "recall@20"
    ours, release = (
        {name: over_seeds([one[name][system] for one in found], metric=recall) for name in found[0]}
        for system in ("ours_blended", "ours")
    )
    cold, everything = found[0]["fashion-cold"], found[0]["fashion-all"]
    knn = {name: values[recall] for name, values in cold.items() if name.startswith("content_knn")}
    pair = max((name for name in knn if name.endswith(("text_image", "even"))), key=knn.__getitem__)
    words = max((name for name in knn if name.endswith("words")), key=knn.__getitem__)
    ease = everything["ease"][recall]
    return {
        "name": "quality_fashion",
        "stage": stage,
        "unit": recall,
        "reading": "one released model and one blend serve both protocols",
        "ours": ours,
        "release": release,
        "peers": {
            "text_knn_cold": knn["content_knn_raw_text"],
            "content_knn_cold": knn[pair],
            "content_knn_cold_best": pair,
            "content_words_knn_cold": knn[words],
            "blend_without_release_cold": cold["blend_without_release"][recall],
            "blend_without_release_all": everything["blend_without_release"][recall],
            "best_id_all": ease,
            "fashion-cold": knn,
            "fashion-all": {name: values[recall] for name, values in everything.items()},
        },
        "ratio": {
            "text_knn_cold": ratio(ours["fashion-cold"], knn["content_knn_raw_text"]),
            "content_knn_cold": ratio(ours["fashion-cold"], knn[pair]),
            "content_words_knn_cold": ratio(ours["fashion-cold"], knn[words]),
            "best_id_all": ratio(ours["fashion-all"], ease),
            "release_text_knn_cold": ratio(release["fashion-cold"], knn["content_knn_raw_text"]),
            "release_best_id_all": ratio(release["fashion-all"], ease),
        },
    }


if __name__ == "__main__":
    main()
