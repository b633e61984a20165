"""Going on from an older run: its vocabulary grows, and every weight it has is taken over.

Shapes: R rows of the concatenated embedding table, O width of a row.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from finetune import run_folder
from finetune.content import Content
from finetune.finished_run import read_weights
from finetune.model import CtrModel
from finetune.rungs import parse_rung
from finetune.settings import FitConfig
from finetune.vocabulary import ID_FIELDS, CategoricalField, Vocabulary

logger = logging.getLogger(__name__)

TABLES = ("fields.table.weight", "fields.table.first_order")


def older_vocabulary(run_dir: Path) -> Vocabulary:
    """The vocabulary of a run."""
    return Vocabulary.load(run_dir / run_folder.VOCABULARY_FILE)


def older_objective(run_dir: Path) -> dict[str, Tensor]:
    """What a run had learnt beside its model; empty where it had nothing to learn there."""
    path = run_dir / run_folder.OBJECTIVE_FILE
    return load_file(path) if path.is_file() else {}


def write_objective(state: Mapping[str, Tensor], run_dir: Path) -> None:
    """Keep what a run has learnt beside its model; of nothing there is no file, nor an old one."""
    path = run_dir / run_folder.OBJECTIVE_FILE
    path.unlink(missing_ok=True)
    if state:
        run_folder.write_tensors(state, path)


def older_content(config: FitConfig, content: Content) -> dict[str, Tensor]:
    """What the older run had learnt of its rung's vectors: spreads of cosines, and codebooks.

    The older run decides, so settings that say otherwise are refused.
    """
    run_dir = config.reuse.warm_start
    assert run_dir is not None
    before = run_folder.read_config(run_dir)
    parts = parse_rung(config.rung).parts
    keys = ["similarities"]
    if "codes" in parts:
        keys += ["code_levels", "num_codes", "code_min_count"]
    found = {f"content.{key}": getattr(config.content, key) for key in keys}
    expected = {f"content.{key}": getattr(before.content, key) for key in keys}
    found, expected = found | {"rung": config.rung}, expected | {"rung": before.rung}
    apart = [key for key in found if found[key] != expected[key]]
    if apart:
        raise ValueError(
            f"reuse.warm_start: found {', '.join(f'{key} {found[key]}' for key in apart)}, "
            f"expected {', '.join(str(expected[key]) for key in apart)} as in the older run; "
            "correct the config, or start anew"
        )
    release = run_folder.read_record(run_dir)["provenance"]["release_fingerprint"]
    if content.release is not None and content.release.fingerprint != release:
        logger.warning(
            "%s: read vectors of the release %s, and this run those of %s: weights and codes of "
            "content mean something else unless the releases share their space",
            run_dir, release, content.release.fingerprint,
        )  # fmt: skip
    return load_file(run_dir / run_folder.CONTENT_FILE)


def grown_vocabulary(old: Vocabulary, new: Vocabulary) -> Vocabulary:
    """The fields of `new` with the values of both, those of `old` first and in their order.

    A field keeps the older mean and spread of its numbers, which the older weights expect.
    """
    before = {(one.owner, one.name): one for one in old.categorical}
    numbers = {(one.owner, one.name): one for one in old.numeric}
    found = [(one.owner, one.name, one.kind) for one in new.categorical]
    expected = [(one.owner, one.name, one.kind) for one in old.categorical]
    missing = {(one.owner, one.name) for one in new.numeric} ^ set(numbers)
    if found != expected or missing:
        apart = sorted(map(str, {*found} ^ {*expected} | missing))
        raise ValueError(
            f"reuse.warm_start: found other fields than the older run's ({', '.join(apart)}), "
            "expected the same features in the same order; correct features in the settings of "
            "python -m data_prep shard, or start anew"
        )
    grown: list[CategoricalField] = []
    offset = 0
    for one in new.categorical:
        older = before[one.owner, one.name]
        if (older.hash_buckets, older.shares) != (one.hash_buckets, one.shares):
            raise ValueError(
                f"reuse.warm_start: found {one.name} hashed into {one.hash_buckets} rows and "
                f"sharing those of {one.shares}, expected {older.hash_buckets} and {older.shares} "
                "as in the older run; correct hash_buckets and item_sequences"
            )
        values = list(dict.fromkeys([*older.values, *one.values]))
        grown.append(dataclasses.replace(one, offset=offset, values=values))
        offset += 0 if one.shares else grown[-1].size
    items = next((one for one in grown if one.name == ID_FIELDS["item"]), None)
    if items is not None:
        grown = [
            dataclasses.replace(one, offset=items.offset, values=items.values)
            if one.shares
            else one
            for one in grown
        ]
    return Vocabulary(
        categorical=grown, numeric=[numbers[one.owner, one.name] for one in new.numeric]
    )


def take_over(model: CtrModel, vocabulary: Vocabulary, run_dir: Path) -> int:
    """Load an older run's weights into a model of a grown vocabulary; returns the new values.

    A new value starts as its field's unknown value, which the older run has trained.
    """
    older, weights = older_vocabulary(run_dir), read_weights(run_dir)
    return take_over_weights(model, vocabulary, weights, older=older, source=str(run_dir))


def take_over_weights(
    model: CtrModel,
    vocabulary: Vocabulary,
    weights: dict[str, Tensor],
    *,
    older: Vocabulary,
    source: str,
) -> int:
    """The same from weights in memory; `source` says in an error whose they are."""
    weights = dict(weights)
    own = model.state_dict()
    apart = [
        name
        for name in own.keys() | weights.keys()
        if name not in own or name not in weights
        or own[name].shape[name in TABLES :] != weights[name].shape[name in TABLES :]
    ]  # fmt: skip
    if apart:
        shapes = "; ".join(
            f"{name}: {_shape(own, name)} here, {_shape(weights, name)} there"
            for name in sorted(apart)
        )
        raise ValueError(
            f"{source}: found a model with other weights than this one ({shapes}), expected the "
            "same head, rung, tasks and settings of content, and content of the same width; "
            "correct the config, or start anew"
        )
    for name in TABLES:
        if name in weights:
            weights[name] = grown_table(weights[name], older, vocabulary)
    model.load_state_dict(weights)
    return vocabulary.num_rows - older.num_rows


def _shape(weights: dict[str, Tensor], name: str) -> str:
    return " by ".join(map(str, weights[name].shape)) or "one" if name in weights else "none"


def grown_table(table_RO: Tensor, old: Vocabulary, new: Vocabulary) -> Tensor:
    """The rows of a grown vocabulary."""
    parts = []
    for before, after in zip(old.categorical, new.categorical, strict=True):
        if after.shares:
            continue
        parts.append(table_RO[before.offset : before.offset + before.size])
        unknown_1O = table_RO[before.unknown : before.unknown + 1]
        parts.append(unknown_1O.repeat(after.size - before.size, 1))
    return torch.cat(parts)
