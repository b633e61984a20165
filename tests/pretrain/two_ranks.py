"""Loss and gradients of one global batch on however many ranks; run by `test_ranks.py`.

    torchrun --nproc_per_node 2 tests/pretrain/two_ranks.py OUT_DIR ddp zero2 ddp-everything

Writes OUT_DIR/<strategy>[-<case>].safetensors from rank 0: the loss, every gradient, where there
is one the queue after the step, and what DDP's health monitor says of gradients.
"""

import dataclasses
import os
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from data_prep.events import EventLog
from pretrain.batch import Batch, ItemBatch
from pretrain.collectives import rank, sum_over_ranks, world_size
from pretrain.health_monitor import HealthConfig, HealthMonitor
from pretrain.known_vectors import KnownVectors
from pretrain.model import ModelConfig, TwoSpaceModel
from pretrain.objective import LossConfig, objective
from pretrain.samples import cut_windows, draw_samples, rank_slice
from pretrain.towers import TowerConfig
from pretrain.user_encoder import UserEncoderConfig

NUM_ITEMS, NUM_USERS, LENGTH = 12, 9, 6
WIDTHS = {"image": 7, "text": 5}
NUM_PAIRS = 7
EVERYTHING = LossConfig(
    pair_weight=0.5,
    behaviour_weight=0.3,
    behaviour_ramp_steps=8,
    logq_form="corrected",
    matryoshka={2: 0.5, 5: 0.25},
    queue_size=5,
    encode_chunk=3,
    tile=4,
)
REUSE = LossConfig(
    pair_weight=0.5,
    distil_weight=0.5,
    compatibility_weight=0.4,
    compatibility="influence",
    tile=4,
)
COLLABORATIVE = LossConfig(
    pair_weight=0.5,
    collaborative_weight=0.6,
    collaborative_ramp_steps=8,
    matryoshka={2: 0.5},
    tile=4,
)
CASES = {
    "collaborative": COLLABORATIVE,
    "collaborative_plain": dataclasses.replace(COLLABORATIVE, tile=0),
    "default": LossConfig(pair_weight=0.5, gate_balance_weight=0.2),
    "everything": EVERYTHING,
    # The plain twin: all logits at once, all items encoded at once.
    "everything_plain": dataclasses.replace(EVERYTHING, tile=0, encode_chunk=0),
    "influence": REUSE,
    "influence_plain": dataclasses.replace(REUSE, tile=0),
    "pull": dataclasses.replace(REUSE, compatibility="pull"),
    "sigmoid": LossConfig(pair_weight=0.5, pair_loss="sigmoid", tile=4),
    "sigmoid_plain": LossConfig(pair_weight=0.5, pair_loss="sigmoid", tile=0),
}


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
    for parameter in model.parameters():  # away from the zeros and small numbers of the start
        if parameter.abs().max() < 0.01:
            nn.init.normal_(parameter, std=0.1)
    return model


def make_known(width: int, *, lacking: int) -> KnownVectors:
    """What an earlier release said of all items but some."""
    generator = torch.Generator().manual_seed(width)
    vectors = nn.functional.normalize(torch.randn(NUM_ITEMS, width, generator=generator), dim=-1)
    places = torch.arange(NUM_ITEMS)
    return KnownVectors(vectors, torch.where(places % lacking == 0, -1, places))


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
    pairs = np.random.default_rng(4).integers(0, NUM_ITEMS - 1, (NUM_PAIRS, 2))
    pairs[:, 1] += pairs[:, 1] >= pairs[:, 0]  # an item is no partner of itself
    mine = pairs[rank_slice(pairs, rank=rank(), num_ranks=world_size())]
    parts = (samples.history_BL, samples.targets_BT, mine)
    named = np.concatenate([part.ravel() for part in parts])
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
    ends = np.cumsum([part.size for part in parts])[:-1]
    history, targets, pair_places = np.split(inverse, ends)
    return Batch(
        items=items,
        history_BL=torch.from_numpy(history.reshape(samples.history_BL.shape)),
        times_BL=torch.from_numpy(samples.times_BL),
        targets_BT=torch.from_numpy(targets.reshape(samples.targets_BT.shape)),
        states_BT=torch.from_numpy(samples.states_BT),
        groups_n=torch.from_numpy(rows // 2),  # every two items have the same content
        modality_groups_n={
            "image": torch.from_numpy(rows // 2),
            "text": torch.from_numpy(rows // 3),
        },
        pairs_K2=torch.from_numpy(pair_places.reshape(-1, 2)),
    )


class Trained(nn.Module):
    """The objective as a module's forward, as both wrappers want it."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.model = make_model()
        self.config = CASES[case]
        self.state = self.config.state(width=8, temperature=0.1, target_width=5)
        if self.state.queue is not None:  # items of a step before this one
            generator = torch.Generator().manual_seed(5)
            past = nn.functional.normalize(torch.randn(4, 8, generator=generator), dim=-1)
            rows = torch.tensor([11, 2, 7, 5])
            self.state.queue.push(past, rows, rows // 2, draws=torch.tensor(6.0), step=2)

    def forward(self, batch: Batch) -> Tensor:
        counts = torch.arange(1.0, NUM_ITEMS + 1)
        return objective(
            self.model,
            batch,
            config=self.config,
            item_probability_N=counts / counts.sum(),
            step=3,
            state=self.state,
            pair_probability_N=counts.flip(0) / counts.sum(),
            teacher=make_known(5, lacking=4),
            old=make_known(8, lacking=3),
            id_vectors=make_known(5, lacking=4),
        ).loss

    def found(self, loss: Tensor, grads: dict[str, Tensor | None]) -> dict[str, Tensor]:
        queue = {name: held.double() for name, held in self.state.named_buffers()}
        return {"loss": loss.detach()} | {n: g for n, g in grads.items() if g is not None} | queue


class Watched:
    """A trainer as the health monitor sees it, and what it logged."""

    def __init__(self, trained: Trained) -> None:
        self.monitor, self.model = HealthMonitor(HealthConfig(every_steps=1)), trained
        self.loggers, self.global_step, self.logged = [self], 0, {}

    def log_metrics(self, metrics: dict[str, float], *, step: int) -> None:
        self.logged |= metrics

    def backward(self, wrapped: nn.Module) -> Tensor:
        batch, module = make_batch(make_log()), SimpleNamespace(model=self.model.model)
        self.monitor.on_train_batch_start(self, module, batch, 0)
        loss = wrapped(batch)
        loss.backward()
        self.monitor.on_train_batch_end(self, module, None, batch, 0)
        return loss

    def gradients(self) -> dict[str, Tensor]:
        return {n: torch.tensor(one) for n, one in self.logged.items() if "/gradient_" in n}


def plain(case: str = "default") -> dict[str, Tensor]:
    trained = Trained(case)
    watched = Watched(trained)
    loss = watched.backward(trained)
    grads = {n: p.grad for n, p in trained.named_parameters()}
    return trained.found(loss, grads) | watched.gradients()


def ddp(case: str) -> dict[str, Tensor]:
    trained = Trained(case)
    watched = Watched(trained)
    loss = watched.backward(nn.parallel.DistributedDataParallel(trained))
    mean = sum_over_ranks(loss) / world_size()
    grads = {n: p.grad for n, p in trained.named_parameters()}
    return trained.found(mean, grads) | watched.gradients()


def zero2(case: str) -> dict[str, Tensor]:
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    trained = Trained(case)
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
    return trained.found(mean, grads)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name in sys.argv[2:]:
        strategy, _, case = name.partition("-")
        found = {"ddp": ddp, "zero2": zero2}[strategy](case or "default")
        if rank() == 0:
            tensors = {key: value.detach().clone().contiguous() for key, value in found.items()}
            save_file(tensors, Path(sys.argv[1]) / f"{name}.safetensors")
    dist.barrier()
    dist.destroy_process_group()
