"""Training steps, each item of a batch encoded once or at every reference; see `dedup_step.py`.

    python tests/bench/dedup_cases.py distinct --dataset_dir DIR --batch 1024 --steps 2

Prints one JSON object; `samples` are steps.
"""

from __future__ import annotations

import argparse

import torch
from measured_loop import MeasuredLoop

from pretrain.cli import parse_run
from pretrain.item_loader import vector_widths_of
from pretrain.model import TwoSpaceModel
from pretrain.objective import LossConfig, objective
from pretrain.towers import build_backbone

CONFIG = "configs/fashion/pretrain.yaml"
CHUNK = 256
"""Items encoded at a time in both cases: every reference at once would not fit."""


def main() -> None:
    """One case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=["distinct", "every_reference"])
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    words = [
        *("--config", CONFIG, "--run.wandb", "off", "--run.dir", "build/bench/dedup"),
        *("--trainer.accelerator", "cpu", "--data.config.features_dir", "null"),
        *("--data.config.dataset_dir", args.dataset_dir, "--data.config.encode", args.case),
        *("--data.config.global_batch_size", str(args.batch)),
        *("--model.encoders.dropout", "0", "--model.encoders.user.dropout", "0"),  # one loss
    ]
    cli = parse_run(words, command="fit")
    encoders, data = cli.model.encoders, cli.datamodule
    data.prepare(towers=encoders.towers, user=encoders.user)
    given = vector_widths_of(data.dataset)
    backbones = {
        name: build_backbone(name, tower, given_width=given.get(name))
        for name, tower in encoders.towers.items()
    }
    torch.manual_seed(0)
    model = TwoSpaceModel(
        encoders,
        backbones=backbones,
        feature_widths={name: one.width for name, one in backbones.items()},
        num_items=data.dataset.num_items,
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3)
    config = LossConfig(pair_weight=0.0, encode_chunk=CHUNK)
    losses, encoded = [], 0
    with MeasuredLoop() as loop:
        for step, batch in enumerate(data.train_dataloader()):
            if step == args.steps:
                break
            found = objective(
                model, batch, config=config, item_probability_N=data.target_probability, step=step
            )
            optimizer.zero_grad()
            found.loss.backward()
            optimizer.step()
            losses.append(float(found.loss))
            encoded += len(batch.items.rows_n)
    loop.report(samples=args.steps, versions=("torch",), losses=losses, encoded=encoded)


if __name__ == "__main__":
    main()
