"""Going on from an older run: its vocabulary grows, and every weight it has is taken over.

Shapes: R rows of the concatenated embedding table, O width of a row.
"""

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from finetune import run_folder
from finetune.model import CtrModel
from finetune.vocabulary import CategoricalField, Vocabulary

TABLE = "fields.table.weight"


def older_vocabulary(run_dir: Path) -> Vocabulary:
    """The vocabulary of a run."""
    return Vocabulary.load(run_dir / run_folder.VOCABULARY_FILE)


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
        values = list(dict.fromkeys([*before[one.owner, one.name].values, *one.values]))
        grown.append(dataclasses.replace(one, offset=offset, values=values))
        offset += grown[-1].size
    return Vocabulary(
        categorical=grown, numeric=[numbers[one.owner, one.name] for one in new.numeric]
    )


def take_over(model: CtrModel, vocabulary: Vocabulary, run_dir: Path) -> int:
    """Load an older run's weights into a model of a grown vocabulary; returns the new values.

    A new value starts as its field's unknown value, which the older run has trained.
    """
    old_vocabulary = older_vocabulary(run_dir)
    weights = load_file(run_dir / run_folder.WEIGHTS_FILE)
    own = model.state_dict()
    apart = [
        name
        for name in own.keys() | weights.keys()
        if name != TABLE and (name not in own or name not in weights
                              or own[name].shape != weights[name].shape)
    ]  # fmt: skip
    if own[TABLE].shape[1] != weights[TABLE].shape[1]:
        apart.append(TABLE)
    if apart:
        raise ValueError(
            f"{run_dir}: found a model with other weights than this one ({', '.join(sorted(apart))}"
            "), expected the same head, rung and tasks; correct the config, or start anew"
        )
    weights[TABLE] = grown_table(weights[TABLE], old_vocabulary, vocabulary)
    model.load_state_dict(weights)
    return vocabulary.num_rows - old_vocabulary.num_rows


def grown_table(table_RO: Tensor, old: Vocabulary, new: Vocabulary) -> Tensor:
    """The rows of a grown vocabulary."""
    parts = []
    for before, after in zip(old.categorical, new.categorical, strict=True):
        parts.append(table_RO[before.offset : before.offset + before.size])
        unknown_1O = table_RO[before.unknown : before.unknown + 1]
        parts.append(unknown_1O.repeat(after.size - before.size, 1))
    return torch.cat(parts)
