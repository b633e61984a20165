"""One step of one contrastive loss, or how far ours is from its reference; run by `loss_memory.py`.

    python tests/bench/loss_cases.py ours --batch 8192 --width 256

Prints one JSON object. Letters: B pairs, D width, N catalogue, H own items of a query.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from measured_loop import MeasuredLoop, peak_bytes
from torch import Tensor

from pretrain.alignments import pair_losses
from pretrain.collectives import gather_counts, gather_rows, rank, sum_over_ranks, world_size
from pretrain.losses import corrected_losses, log_inclusion_probability
from pretrain.negatives import NegativesConfig, contrast

STEPS = 3
WARM_UP_BATCH = 256
NUM_OWN = 20
SCALE = 1 / 0.07
TILE = NegativesConfig().tile


@dataclass(frozen=True)
class Inputs:
    """Leaves that get gradients, and the ids of the masked case."""

    left_BD: Tensor
    right_BD: Tensor
    """As many as queries; the masked case takes them for the catalogue (N = B)."""
    scale: Tensor
    target_B: Tensor
    own_BH: Tensor
    groups_N: Tensor
    probability_N: Tensor

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Everything with a gradient."""
        return self.left_BD, self.right_BD, self.scale


def make_inputs(batch: int, *, width: int) -> Inputs:
    """Random vectors and Zipf-like choices; the same in every process."""
    generator = torch.Generator().manual_seed(0)
    left, right = (F.normalize(torch.randn(batch, width, generator=generator)) for _ in range(2))
    probability = torch.arange(1.0, batch + 1) ** -0.9
    probability = probability / probability.sum()
    drawn = torch.multinomial(probability, batch * (1 + NUM_OWN), True, generator=generator)
    return Inputs(
        left.requires_grad_(),
        right.requires_grad_(),
        torch.tensor([SCALE], requires_grad=True),
        drawn[:batch],
        drawn[batch:].view(batch, NUM_OWN),
        torch.arange(batch) // 3,
        probability,
    )


def ours(inputs: Inputs) -> Tensor:
    """CLIP's loss by our tiles, this rank's share."""
    mine = _slice(len(inputs.left_BD))
    right_BD = inputs.right_BD[mine]
    counts = gather_counts(len(right_BD), device=right_BD.device)
    pairs = pair_losses(
        inputs.left_BD[mine],
        gather_rows(right_BD, counts=counts),
        own_P=torch.arange(len(inputs.left_BD))[mine],
        groups=(),
        kind="info_nce",
        scale=inputs.scale,
        bias=None,
        tile=TILE,
    )
    return pairs.losses_P.sum() * world_size() / len(inputs.left_BD)


def clip_loss(inputs: Inputs) -> Tensor:
    """open_clip's, of the whole batch in this process."""
    from open_clip.loss import ClipLoss

    loss: Tensor = ClipLoss()(inputs.left_BD, inputs.right_BD, inputs.scale)
    return loss


def ours_masked(inputs: Inputs) -> Tensor:
    """User→item with corrected logQ and every mask by our tiles, this rank's share."""
    mine = _slice(len(inputs.left_BD))
    return contrast(
        inputs.left_BD[mine],
        inputs.right_BD,
        target_P=inputs.target_B[mine],
        own_PH=inputs.own_BH[mine],
        rows_n=torch.arange(len(inputs.right_BD)),
        groups_n=inputs.groups_N,
        probability_N=inputs.probability_N,
        scale=inputs.scale,
        config=NegativesConfig(logq_form="corrected", tile=TILE),
    ).loss


def dense_masked(inputs: Inputs) -> Tensor:
    """The same from the whole matrices of logits and masks, of the whole batch in this process."""
    rows_G, place_B = torch.unique(inputs.target_B, return_inverse=True)
    own_BN = torch.zeros(len(inputs.left_BD), len(inputs.right_BD), dtype=torch.bool)
    own_BN.scatter_(1, inputs.own_BH, True)
    own_BN.scatter_(1, inputs.target_B[:, None], True)
    same_BG = inputs.groups_N[inputs.target_B][:, None] == inputs.groups_N[rows_G]
    log_q_G = log_inclusion_probability(
        inputs.probability_N[rows_G], num_draws=len(inputs.target_B) - 1
    )
    logits_BG = inputs.scale * inputs.left_BD @ inputs.right_BD[rows_G].T
    positive_B = logits_BG.gather(1, place_B[:, None]).squeeze(1)
    negatives_BG = (logits_BG - log_q_G).masked_fill(own_BN[:, rows_G] | same_BG, float("-inf"))
    return corrected_losses(positive_B, negatives_BG.logsumexp(1)).mean()


def _slice(batch: int) -> slice:
    return slice(rank() * batch // world_size(), (rank() + 1) * batch // world_size())


LOSSES: dict[str, Callable[[Inputs], Tensor]] = {
    "ours": ours,
    "clip_loss": clip_loss,
    "ours_masked": ours_masked,
    "dense_masked": dense_masked,
}
REFERENCES = {"ours": "clip_loss", "ours_masked": "dense_masked"}


def measure(case: str, *, batch: int, width: int) -> None:
    """Print CPU time a pair and the memory that a step takes beyond its inputs."""
    loss_of = LOSSES[case]
    loss_of(make_inputs(WARM_UP_BATCH, width=width)).backward()
    inputs = make_inputs(batch, width=width)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak_bytes()
    with MeasuredLoop() as loop:
        for _ in range(STEPS):
            for leaf in inputs.leaves():
                leaf.grad = None
            loss_of(inputs).backward()
    extra = peak_bytes() - before
    loop.report(
        samples=STEPS * batch, versions=("torch", "open_clip_torch"), extra_bytes=extra, width=width
    )


def difference(*, batch: int, width: int) -> None:
    """Print how far loss and gradients are from the reference, on however many ranks."""
    found = {
        name: difference_from(name, reference, batch=batch, width=width)
        for name, reference in REFERENCES.items()
    }
    if rank() == 0:
        print(json.dumps({"ranks": world_size(), "cpu_us": 0.0} | found), flush=True)


def difference_from(name: str, reference: str, *, batch: int, width: int) -> dict[str, float]:
    """Largest difference of the loss and its gradients, and the same over their largest value."""
    inputs = make_inputs(batch, width=width)
    expected = LOSSES[reference](inputs)
    expected_grads = torch.autograd.grad(expected, inputs.leaves())
    share = LOSSES[name](inputs)
    grads = torch.autograd.grad(share, inputs.leaves())
    # DDP's mean over the ranks.
    pairs = [(expected.detach(), sum_over_ranks(share) / world_size())]
    for want, mine in zip(expected_grads, grads, strict=True):
        pairs.append((want, sum_over_ranks(mine) / world_size()))
    apart = [float((want - have).abs().max()) for want, have in pairs]
    relative = [one / float(want.abs().max()) for one, (want, _) in zip(apart, pairs, strict=True)]
    return {"max_abs": max(apart), "max_relative": max(relative)}


def main() -> None:
    """One case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=[*LOSSES, "difference"])
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.case != "difference":
        measure(args.case, batch=args.batch, width=args.width)
        return
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    difference(batch=args.batch, width=args.width)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
