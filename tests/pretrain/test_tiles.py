"""Tiled sums against whole matrices: forward, backward and what they hold in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.tiles import Exclusions, Sums, tiled_sums

P, G, D = 37, 53, 6


def leaves(*, scale: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, candidate = (F.normalize(torch.randn(n, D, generator=generator)) for n in (P, G))
    bias = torch.randn(G, generator=generator)
    return [one.requires_grad_() for one in (scale * query, candidate, bias)]


def exclusions() -> Exclusions:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, G, (P,), generator=generator)
    own = torch.randint(-1, G, (P, 5), generator=generator)
    own[3] = torch.arange(5)
    group = torch.arange(G) // 4
    group[-9:] = 100  # a large group
    other = torch.randperm(G, generator=generator) // 3
    return Exclusions(target_P=target, own_PH=own, groups=(group, other))


def run(
    *, kind: str, columns: bool, tile: int, masks: Exclusions, scale: float
) -> tuple[Sums, list[Tensor]]:
    inputs = leaves(scale=scale)
    sums = tiled_sums(
        inputs[0], inputs[1], bias_G=inputs[2], exclusions=masks,
        kind=kind, columns=columns, tile=tile,
    )  # fmt: skip
    weight = torch.linspace(-1, 2, P)  # rows weigh differently, some negatively
    loss = (weight * torch.where(sums.row_P.isfinite(), sums.row_P, 0.0)).sum()
    if sums.column_G is not None:
        loss = loss + (torch.linspace(2, -1, G) * sums.column_G).sum()
    return sums, list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("scale", [3.0, 100.0])
@pytest.mark.parametrize("tile", [7, 16, 64])
@pytest.mark.parametrize(
    ("kind", "columns"), [("logsumexp", False), ("logsumexp", True), ("softplus", False)]
)
def test_tiles_give_the_sums_and_gradients_of_the_whole_matrix(
    kind: str, columns: bool, tile: int, scale: float
) -> None:
    settings = {"kind": kind, "columns": columns, "masks": exclusions(), "scale": scale}
    expected, expected_grads = run(tile=0, **settings)
    found, grads = run(tile=tile, **settings)
    torch.testing.assert_close(found.row_P, expected.row_P, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.negatives_P, expected.negatives_P)
    if columns:
        torch.testing.assert_close(found.column_G, expected.column_G, rtol=1e-5, atol=1e-5)
    for one, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tile", [0, 8])
def test_the_sum_is_over_just_the_candidates_that_no_mask_names(tile: int) -> None:
    masks, (scaled, candidate, bias) = exclusions(), leaves(scale=3.0)
    sums = tiled_sums(scaled, candidate, bias_G=bias, exclusions=masks, tile=tile)
    for row in range(P):
        named = {int(masks.target_P[row]), *masks.own_PH[row].tolist()}
        for group in masks.groups:
            named |= set((group == group[masks.target_P[row]]).nonzero().flatten().tolist())
        allowed = [g for g in range(G) if g not in named]
        logits = scaled[row] @ candidate[allowed].T + bias[allowed]
        torch.testing.assert_close(sums.row_P[row], logits.logsumexp(0))
        assert int(sums.negatives_P[row]) == len(allowed)


@pytest.mark.parametrize("tile", [0, 8])
def test_an_excluded_candidate_gets_no_gradient(tile: int) -> None:
    scaled, candidate, bias = leaves(scale=3.0)
    own = torch.arange(1, G).expand(P, -1)  # only candidate 0 remains, and nothing in the end
    masks = Exclusions(target_P=torch.full((P,), 2), own_PH=own)
    sums = tiled_sums(scaled, candidate, bias_G=bias, exclusions=masks, tile=tile)
    (grad,) = torch.autograd.grad(sums.row_P.sum(), candidate)
    assert grad[0].abs().sum() > 0
    assert grad[1:].abs().sum() == 0
    masks = Exclusions(target_P=torch.zeros(P, dtype=torch.int64), own_PH=own)
    sums = tiled_sums(scaled, candidate, bias_G=bias, exclusions=masks, tile=tile)
    assert sums.row_P.isneginf().all()
    assert sums.negatives_P.tolist() == [0] * P


class Largest(TorchDispatchMode):
    """The most elements that any tensor made in the block has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize("tile", [0, 8])
def test_only_tiles_are_ever_in_memory(tile: int) -> None:
    with Largest() as largest:
        run(kind="logsumexp", columns=True, tile=tile, masks=exclusions(), scale=3.0)
    linear = max(P * D, G * D, 2 * P * 5, 2 * G)  # int64 ids count twice
    assert (largest.elements <= max(linear, 2 * tile * tile)) == (tile > 0)
