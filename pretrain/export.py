"""`python -m pretrain export`: a run folder → a released checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.checksums import file_checksum
from data_prep.dataset import Dataset, open_dataset
from data_prep.manifest import Manifest
from data_prep.records import MANIFEST_FILE, replace_file
from pretrain.checkpoint_choice import find_checkpoint
from pretrain.checkpoint_files import STATE_FILE, ZERO_FOLDER, no_code
from pretrain.model import ModelConfig
from pretrain.preprocess import TextPreprocessor, build_preprocessors
from pretrain.release import build_released_model, file_sha256
from pretrain.release_config import CONFIG_FILE, ID_MAP_FILE, WEIGHTS_FILE, ReleaseConfig
from pretrain.tuning import merge_tuned
from pretrain.user_features import UserColumn

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
BACKBONES_FILE = "backbones.safetensors"


def describe_run(
    model: ModelConfig,
    *,
    dataset: Dataset,
    architectures: dict[str, dict[str, Any]],
    feature_widths: dict[str, int],
    user_columns: Sequence[UserColumn] = (),
    reused: Mapping[str, dict[str, Any]] | None = None,
) -> ReleaseConfig:
    """What a release of this run will say of itself."""
    manifest = dataset.manifest
    modalities = manifest.modalities
    reused = dict(reused or {})
    seen = [manifest.newest_train_event, *(one["newest_event"] for one in reused.values())]
    return ReleaseConfig(
        model=model,
        architectures=architectures,
        feature_widths=feature_widths,
        user_columns=tuple(user_columns),
        text_fields=tuple(modalities.get("text", {}).get("fields", ())),
        vector_widths={n: int(e["width"]) for n, e in modalities.items() if "width" in e},
        num_items=dataset.num_items,
        dataset=manifest.name,
        dataset_fingerprint=file_sha256(dataset.dir / MANIFEST_FILE),
        newest_event=max(seen),
        reused=reused,
        valid_start=manifest.cutoffs.valid_start,
    )


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Weights of a training checkpoint of one's own, a folder `step-N`."""
    if (checkpoint / ZERO_FOLDER).is_dir():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        from pretrain.zero_state import tensors_only

        with tensors_only(checkpoint):
            state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=ZERO_FOLDER)
    else:
        file = checkpoint / STATE_FILE
        with no_code(file):
            state = torch.load(file, weights_only=True, map_location="cpu")["state_dict"]
    return {
        name.removeprefix("model."): tensor.detach().float().contiguous().clone()
        for name, tensor in state.items()
        if name.startswith("model.")
    }


def export(run_dir: Path, out_dir: Path, *, dataset_dir: Path, checkpoint: str = "best") -> None:
    """Write a released checkpoint from a run folder.

    Args:
        run_dir: folder of `python -m pretrain fit` (its run.dir).
        out_dir: the release, made or replaced file by file, config.json last.
        dataset_dir: dataset folder that was trained on, for its id map.
        checkpoint: `best` by validation, or `last`.
    """
    run_file = run_dir / RUN_FILE
    if not run_file.is_file():
        raise ValueError(f"{run_dir}: no {RUN_FILE}; it is not a folder of python -m pretrain fit")
    config = ReleaseConfig.from_json(run_file.read_text(), source=run_file)
    dataset = open_dataset(dataset_dir)
    if file_sha256(dataset.dir / MANIFEST_FILE) != config.dataset_fingerprint:
        raise ValueError(
            f"{dataset_dir}: not the dataset that {run_dir} was trained on "
            f"({config.dataset}); name that one"
        )
    source = find_checkpoint(run_dir, which=checkpoint)
    weights = read_weights(source)
    backbones_file = run_dir / BACKBONES_FILE
    if backbones_file.is_file():
        # The cached features may be of more towers than the run reads.
        own = tuple(f"item_encoder.backbones.{tower}." for tower in config.model.towers)
        cached = load_file(backbones_file)
        weights |= {name: value for name, value in cached.items() if name.startswith(own)}
    weights = merge_tuned(weights, config.model.towers)
    model = build_released_model(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{source}: weights do not fit {run_file}: {error}") from error

    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / CONFIG_FILE).unlink(missing_ok=True)
    temporary = out_dir / (WEIGHTS_FILE + ".tmp")
    save_file(model.state_dict(), temporary, metadata={"format": "pt"})
    temporary.replace(out_dir / WEIGHTS_FILE)
    pq.write_table(dataset.items.select(["item_row", "item_id"]), out_dir / ID_MAP_FILE)
    preprocessors = build_preprocessors(
        config.model.towers, text_fields=config.text_fields, vector_widths=config.vector_widths
    )
    for preprocessor in preprocessors.values():
        if isinstance(preprocessor, TextPreprocessor):
            preprocessor.save(out_dir / "tokenizer")
    replace_file(out_dir / "README.md", card(config, dataset.manifest, source=source).encode())
    replace_file(out_dir / CONFIG_FILE, with_digests(config, out_dir).to_json().encode())
    log.info("released %s from %s", out_dir, source)


def with_digests(config: ReleaseConfig, folder: Path) -> ReleaseConfig:
    """The config with checksums of the folder's weights, id map and tokenizer."""
    paths = [folder / WEIGHTS_FILE, folder / ID_MAP_FILE]
    paths += sorted(path for path in (folder / "tokenizer").rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): file_checksum(path) for path in paths}
    return replace(config, files=digests)


def card(config: ReleaseConfig, manifest: Manifest, *, source: Path) -> str:
    """The card: what it is, what it has seen, how to load it."""

    def day(milliseconds: int) -> str:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")

    towers = "\n".join(
        f"| {name} | {tower.library} {tower.name} | {tower.weights} | {tower.train} |"
        for name, tower in config.model.towers.items()
    )
    content = f"""| modality | backbone | weights at the start | trained |
|---|---|---|---|
{towers}"""
    use = """\
vectors = release.encode_items(records)  # data_prep.records.ItemRecord: picture, texts, vectors"""
    if not towers:
        content = "No content: an item is known by its id alone, and a new item not at all."
        use = """\
nothing = torch.zeros(len(item_ids), release.width)  # in the place of content
vectors, events = release.add_ids(nothing, item_ids)  # pyarrow.Array, as in id_map.parquet"""
    built_on = "".join(
        f"- Built on the release with weights SHA-256 `{one['release_fingerprint']}` ({name}).\n"
        if "release_fingerprint" in one
        else f"- Built on vectors from a file with SHA-256 `{one['file_sha256']}` ({name}).\n"
        for name, one in config.reused.items()
    )
    counts = ", ".join(f"{value:,} {name}" for name, value in manifest.counts.items())
    return f"""# Triptych release: {config.dataset}

Item and user encoder in one space of width {config.model.width}.

{content}

- Newest event seen: {day(config.newest_event)} ({config.newest_event} ms). Do not finetune on data
  whose `valid_start` is not after it: that would be looking ahead.
{built_on}- Dataset: {config.dataset}, manifest SHA-256 `{config.dataset_fingerprint}`: {counts}.
- Checkpoint: `{source.name}`.
- The terms of the data and of the backbones' weights apply to this release too.

```python
from pretrain import load_released

release = load_released("path/to/this/folder")  # no Lightning, no DeepSpeed, no pickle
{use}
```
"""
