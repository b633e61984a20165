"""`python -m pretrain semantic_ids`: released vectors → a few codes an item, with the id map."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from data_prep.dataset import open_dataset
from data_prep.records import replace_file
from pretrain.cases import columns_of
from pretrain.knock_out import refuse_knock_out
from pretrain.residual_codes import (
    code_use,
    collision_numbers,
    decode_residual,
    encode_residual,
    residual_kmeans,
)
from pretrain.residual_quantiser import train_quantiser

log = logging.getLogger(__name__)

IDS_FILE, CODEBOOKS_FILE, ABOUT_FILE = "ids.parquet", "codebooks.safetensors", "semantic_ids.json"


def semantic_ids(
    embeddings_dir: Path,
    dataset_dir: Path,
    out_dir: Path,
    *,
    method: Literal["residual_kmeans", "residual_quantiser"] = "residual_kmeans",
    column: Literal["aligned", "raw"] = "aligned",
    levels: int = 3,
    num_codes: int = 256,
    iterations: int = 25,
    hidden: int = 32,
    steps: int = 2000,
    seed: int = 0,
) -> None:
    """Give every item a few codes.

    Writes `ids.parquet` (item_row, item_id, `codes`, `collision`), codebooks.safetensors, and
    semantic_ids.json with how evenly the codes are used, last of all. Codebooks are learnt from
    items with an event before `valid_start` only; all items are encoded. `collision` numbers the
    items that share all their codes, so that both together name one item.

    Args:
        embeddings_dir: vectors of python -m pretrain embed.
        dataset_dir: the dataset they are of.
        out_dir: where the ids go.
        method: k-means on residuals, or an autoencoder with residual codes (RQ-VAE).
        column: which vectors: `aligned` in the released space, or `raw` off-the-shelf features.
        levels: codes an item.
        num_codes: codes of a level to choose from.
        iterations: of k-means.
        hidden: width of the autoencoder's codes.
        steps: training steps of the autoencoder.
        seed: decides the start.

    Raises:
        ValueError: vectors of another catalogue, a knock-out, or settings out of range.
    """
    if min(levels, num_codes - 1, iterations, hidden, steps) < 1:
        raise ValueError(
            "levels, iterations, hidden and steps must be at least 1 and num_codes 2, got "
            f"{levels}, {iterations}, {hidden}, {steps} and {num_codes}"
        )
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    dataset = open_dataset(dataset_dir)
    embeddings = json.loads((embeddings_dir / "embeddings.json").read_text())
    refuse_knock_out(embeddings_dir, embeddings.get("without", []))
    path = embeddings_dir / "items.parquet"
    if column not in (found := columns_of(path)):
        raise ValueError(
            f"{path}: found the columns {found}, expected {column} (a release on ids alone has no "
            "raw); choose column: aligned"
        )
    table = pq.read_table(path, columns=["item_row", "item_id", column])
    if not table["item_id"].equals(dataset.items["item_id"]):
        raise ValueError(
            f"{embeddings_dir}: its {len(table):,} items are not those of {dataset_dir} "
            f"({dataset.num_items:,}); run python -m pretrain embed on that dataset"
        )
    vectors = table[column].combine_chunks()
    flat = vectors.flatten().to_numpy().astype(np.float32).reshape(len(table), -1)
    rows_ND = torch.from_numpy(flat)
    seen_N = torch.from_numpy(dataset.items["train_count"].to_numpy() > 0)
    codes_NV, rebuilt_ND, tensors = _quantise(
        rows_ND, seen_N, method=method, levels=levels, num_codes=num_codes, iterations=iterations,
        hidden=hidden, steps=steps, seed=seed,
    )  # fmt: skip
    number_N = collision_numbers(codes_NV)
    about = {
        "method": method, "column": column, "levels": levels, "num_codes": num_codes, "seed": seed,
        "use": [
            dataclasses.asdict(code_use(code_N, num_codes=num_codes)) for code_N in codes_NV.T
        ],
        "distinct_ids": int((number_N == 0).sum()),
        "items": len(table),
        "error_seen": _relative_error(rows_ND, rebuilt_ND, seen_N),
        "error_unseen": _relative_error(rows_ND, rebuilt_ND, ~seen_N),
        "newest_event": max(dataset.manifest.newest_train_event, embeddings["newest_event"]),
        "embeddings": embeddings,
    }  # fmt: skip
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / ABOUT_FILE).unlink(missing_ok=True)
    codes = pa.FixedSizeListArray.from_arrays(
        pa.array(codes_NV.to(torch.int32).flatten().numpy()), levels
    )
    ids = table.select(["item_row", "item_id"]).append_column("codes", codes)
    ids = ids.append_column("collision", pa.array(number_N.to(torch.int32).numpy()))
    pq.write_table(ids, out_dir / (IDS_FILE + ".tmp"))
    (out_dir / (IDS_FILE + ".tmp")).replace(out_dir / IDS_FILE)
    save_file(tensors, out_dir / (CODEBOOKS_FILE + ".tmp"))
    (out_dir / (CODEBOOKS_FILE + ".tmp")).replace(out_dir / CODEBOOKS_FILE)
    replace_file(out_dir / ABOUT_FILE, json.dumps(about, indent=2).encode())
    for level, use in enumerate(about["use"]):  # type: ignore[arg-type]
        log.info(
            "level %d: %d of %d codes used, as evenly as %.1f would be, the largest by %.1f %%",
            *(level, use["used"], num_codes, use["perplexity"], 100 * use["largest_share"]),
        )
    log.info("%s: %d distinct ids of %d items", out_dir, about["distinct_ids"], len(table))


def _quantise(
    rows_ND: Tensor,
    seen_N: Tensor,
    *,
    method: str,
    levels: int,
    num_codes: int,
    iterations: int,
    hidden: int,
    steps: int,
    seed: int,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Codes [N, V], rows rebuilt from them [N, D], and the tensors that make codes of new rows."""
    if not bool(seen_N.any()):
        raise ValueError("no item has an event before valid_start; codes cannot be learnt")
    if method == "residual_kmeans":
        codebooks_VKD = residual_kmeans(
            rows_ND[seen_N], levels=levels, num_codes=num_codes, seed=seed, iterations=iterations
        )
        codes_NV = encode_residual(rows_ND, codebooks_VKD)
        return codes_NV, decode_residual(codes_NV, codebooks_VKD), {"codebooks_VKD": codebooks_VKD}
    quantiser = train_quantiser(
        rows_ND[seen_N], hidden=hidden, levels=levels, num_codes=num_codes, steps=steps, seed=seed
    )
    codes_NV = quantiser.encode(rows_ND)
    return codes_NV, quantiser.decode(codes_NV), dict(quantiser.state_dict())


def _relative_error(rows_ND: Tensor, rebuilt_ND: Tensor, chosen_N: Tensor) -> float | None:
    """Squared error as a share of the rows' variance; None without rows that vary."""
    rows_nD = rows_ND[chosen_N]
    spread = float((rows_nD - rows_nD.mean(0)).square().sum()) if len(rows_nD) else 0.0
    if not spread:
        return None
    return float((rows_nD - rebuilt_ND[chosen_N]).square().sum()) / spread
