"""Loss and gradients of one global batch on however many ranks; run by `test_ranks.py`.

    torchrun --nproc_per_node 2 tests/pretrain/two_ranks.py OUT_DIR ddp zero2

Writes OUT_DIR/<strategy>.safetensors from rank 0: the loss and every gradient.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from data_prep.events import EventLog
from pretrain.batch import Batch, ItemBatch
from pretrain.collectives import rank, sum_over_ranks, world_size
from pretrain.model import ModelConfig, TwoSpaceModel
from pretrain.objective import LossConfig, objective
from pretrain.samples import cut_windows, draw_samples, rank_slice
from pretrain.towers import TowerConfig
from pretrain.user_encoder import UserEncoderConfig

NUM_ITEMS, NUM_USERS, LENGTH = 12, 9, 6
WIDTHS = {"image": 7, "text": 5}


def make_model() -> TwoSpaceModel:
    torch.manual_seed(0)
    towers = {name: TowerConfig(library="given") for name in WIDTHS}
    user = UserEncoderConfig(layers=1, heads=2, dropout=0.0, history_length=LENGTH)
    config = ModelConfig(
        towers=towers,
        width=8,
        dropout=0.0,
        user=user,
        ids="both",
        modality_dropout=0.3,
    )
    model = TwoSpaceModel(config, backbones={}, feature_widths=WIDTHS, num_items=NUM_ITEMS)
    assert model.ids is not None
    nn.init.normal_(model.ids.weight, std=0.1)
    return model


def make_log() -> EventLog:
    """Few items, so that both ranks hold the same ones and users chose what others chose too."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(2, 9, NUM_USERS)
    events = int(sizes.sum())
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    times = np.concatenate([np.sort(rng.integers(0, 10, size)) for size in sizes])
    return EventLog(
        offsets=offsets,
        item_rows=rng.integers(0, NUM_ITEMS, events).astype(np.uint32),
        times=times.astype(np.int64) * 3_600_000,
        labels=np.ones(events, np.int8),
    )


def make_batch(log: EventLog) -> Batch:
    """This rank's part of one global batch of all windows (an odd number of them)."""
    windows = cut_windows(log, length=LENGTH, order="time")
    everything = np.arange(len(windows) - (len(windows) + 1) % 2)
    samples = draw_samples(
        log, windows, batch=everything,
        part=rank_slice(everything, rank=rank(), num_ranks=world_size()),
        length=LENGTH, num_targets=3, order="time", seed=0, epoch=0, step=0,
    )  # fmt: skip
    named = np.concatenate([samples.history_BL.ravel(), samples.targets_BT.ravel()])
    rows, inverse = np.unique(np.append(named, -1), return_inverse=True)
    rows, inverse = rows[1:], inverse[:-1] - 1
    generator = torch.Generator().manual_seed(2)
    features = {name: torch.randn(NUM_ITEMS, F, generator=generator) for name, F in WIDTHS.items()}
    lacks = {"image": torch.arange(NUM_ITEMS) % 5 == 0, "text": torch.arange(NUM_ITEMS) % 4 == 0}
    presence = {name: ~lacks[name][rows] for name in WIDTHS}
    items = ItemBatch(
        rows_n=torch.from_numpy(rows),
        inputs={n: {"features": features[n][rows][presence[n]]} for n in WIDTHS},
        presence=presence,
    )
    split = samples.history_BL.size
    return Batch(
        items=items,
        history_BL=torch.from_numpy(inverse[:split].reshape(samples.history_BL.shape)),
        times_BL=torch.from_numpy(samples.times_BL),
        targets_BT=torch.from_numpy(inverse[split:].reshape(samples.targets_BT.shape)),
        states_BT=torch.from_numpy(samples.states_BT),
    )


class Trained(nn.Module):
    """The objective as a module's forward, as both wrappers want it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()

    def forward(self, batch: Batch) -> Tensor:
        counts = torch.arange(1.0, NUM_ITEMS + 1)
        return objective(
            self.model,
            batch,
            config=LossConfig(pair_weight=0.5, gate_balance_weight=0.2),
            item_probability_N=counts / counts.sum(),
            step=3,
        ).loss


def plain() -> dict[str, Tensor]:
    trained = Trained()
    loss = trained(make_batch(make_log()))
    loss.backward()
    return {"loss": loss.detach()} | {
        name: parameter.grad.clone()
        for name, parameter in trained.named_parameters()
        if parameter.grad is not None
    }


def ddp() -> dict[str, Tensor]:
    trained = Trained()
    wrapped = nn.parallel.DistributedDataParallel(trained)
    loss = wrapped(make_batch(make_log()))
    loss.backward()
    mean = sum_over_ranks(loss) / world_size()
    return {"loss": mean} | {n: p.grad for n, p in trained.named_parameters() if p.grad is not None}


def zero2() -> dict[str, Tensor]:
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    trained = Trained()
    engine, *_ = deepspeed.initialize(
        model=trained,
        optimizer=torch.optim.AdamW(trained.parameters(), 1e-3),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
        },
        dist_init_required=False,
    )
    loss = engine(make_batch(make_log()))
    engine.backward(loss)
    grads = {name: safe_get_full_grad(p) for name, p in trained.named_parameters()}
    mean = sum_over_ranks(loss) / world_size()
    return {"loss": mean} | {name: grad for name, grad in grads.items() if grad is not None}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for strategy in sys.argv[2:]:
        found = {"ddp": ddp, "zero2": zero2}[strategy]()
        if rank() == 0:
            tensors = {name: value.detach().clone().contiguous() for name, value in found.items()}
            save_file(tensors, Path(sys.argv[1]) / f"{strategy}.safetensors")
    dist.barrier()
    dist.destroy_process_group()
