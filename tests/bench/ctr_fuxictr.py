"""FuxiCTR's side of `ctr_speed`: its layers, loader and training loop, in its own environment.

    python tests/bench/ctr_fuxictr.py fuxictr --npz_dir DIR --values 12000

The package holds no DeepFM; this one is assembled from its layers as its model zoo does. Initial
scales are those of ours: 0.01 for tables, torch's own for linear layers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from ctr_world import FIELDS
from measured_loop import MeasuredLoop
from torch import nn

BATCH, WIDTH, HIDDEN, LR = 4_096, 16, [256, 128, 64], 1e-3
INIT_STD = 0.01
VERSIONS = ("fuxictr", "torch")


def feature_map(values: int) -> Any:  # noqa: ANN401 (a peer's class)
    """Twenty categorical features; id 0 is padding."""
    from fuxictr.features import FeatureMap

    features = FeatureMap("ctr_world", ".")
    spec = {"source": "", "type": "categorical", "padding_idx": 0, "vocab_size": values + 1}
    features.features = OrderedDict((name, dict(spec)) for name in FIELDS)
    features.labels = ["label"]
    features.num_fields = len(FIELDS)
    features.total_features = len(FIELDS) * (values + 1)
    features.default_emb_dim = WIDTH
    features.set_column_index()
    return features


def build(features: Any, *, seed: int, folder: str) -> Any:  # noqa: ANN401
    """FuxiCTR's DeepFM."""
    from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    class DeepFM(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(
                features, gpu=-1, verbose=0, model_root=folder, metrics=["AUC", "logloss"]
            )
            self.embedding_layer = FeatureEmbedding(features, WIDTH)
            self.fm = FactorizationMachine(features)
            self.mlp = MLP_Block(
                input_dim=features.sum_emb_out_dim(),
                output_dim=1,
                hidden_units=HIDDEN,
                hidden_activations="ReLU",
                output_activation=None,
                dropout_rates=0,
                batch_norm=False,
            )
            self.compile("adam", "binary_crossentropy", LR)
            self.model_to_device()

        def forward(self, inputs: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
            x = self.get_inputs(inputs)
            vectors = self.embedding_layer(x)
            logit = self.fm(x, vectors)
            logit += self.mlp(vectors.flatten(start_dim=1))
            return {"y_pred": self.output_activation(logit)}

    torch.manual_seed(seed)
    model = DeepFM()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
    return model


def loader(features: Any, path: Path, *, shuffle: bool) -> Any:  # noqa: ANN401
    """Without workers, which cost it a quarter more CPU time."""
    from fuxictr.pytorch.dataloaders import RankDataLoader

    return RankDataLoader(
        features,
        stage="train",
        train_data=str(path),
        batch_size=BATCH,
        shuffle=shuffle,
        data_format="npz",
        num_workers=0,
    )[0]


class Limited:
    """The first batches of a loader."""

    def __init__(self, batches: Any, num_batches: int) -> None:  # noqa: ANN401
        self.batches = batches
        self.num_batches = min(num_batches, len(batches)) if num_batches else len(batches)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Any:  # noqa: ANN401
        for _, batch in zip(range(self.num_batches), self.batches, strict=False):
            yield batch


def main() -> None:
    """Run one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=("fuxictr", "fuxictr_loader"))
    parser.add_argument("--npz_dir", type=Path, required=True)
    parser.add_argument("--values", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="0: the whole epoch, and its AUC")
    args = parser.parse_args()
    torch.set_num_threads(1)
    features = feature_map(args.values)
    train = Limited(loader(features, args.npz_dir / "train.npz", shuffle=True), args.steps)
    num_rows = min(len(train) * BATCH, train.batches.num_samples)
    if args.case == "fuxictr_loader":
        for _ in Limited(train, 2):
            pass
        with MeasuredLoop() as loop:
            for _ in train:
                pass
        loop.report(samples=num_rows, versions=VERSIONS)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = build(features, seed=args.seed, folder=folder)
    model._max_gradient_norm, model._eval_steps, model._total_steps = 10.0, sys.maxsize, 0
    model._stop_training = False
    model.train_epoch(Limited(train, 1))  # makes the moments, which is no cost of an epoch
    model = model if args.steps else build(features, seed=args.seed, folder=folder)
    model._max_gradient_norm, model._eval_steps, model._total_steps = 10.0, sys.maxsize, 0
    model._stop_training = False
    with MeasuredLoop() as loop:
        model.train_epoch(train)
    told = {}
    if not args.steps:
        valid = loader(features, args.npz_dir / "valid.npz", shuffle=False)
        found = model.evaluate(valid, metrics=["AUC", "logloss"])
        told = {"auc": found["AUC"], "logloss": found["logloss"]}
    loop.report(samples=num_rows, versions=VERSIONS, **told)


if __name__ == "__main__":
    main()
