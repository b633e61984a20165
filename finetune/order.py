"""The order in which an epoch sees its impressions: a pure function of seed, epoch and split.

A split of at most `shuffle_rows` impressions is permuted whole. Of a larger one, blocks of
neighbours come in random order, and as many blocks as make `shuffle_rows` impressions are mixed at
a time: what is read from the disk at a time are whole blocks, and no more is held than those.

Shapes: N impressions, n of a window, b blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

BLOCK_ROWS = 4_096
"""Neighbours that are read together."""
SHUFFLE_ROWS = 1 << 20
"""Impressions mixed fully, unless told otherwise."""


@dataclass(frozen=True)
class Window:
    """Impressions that are mixed with each other and with no others."""

    rows: Int64
    """In the order in which they are seen."""
    starts: list[int]
    """First rows of the blocks that they are from."""


@dataclass(frozen=True)
class NegativeSampling:
    """Every positive, and in each epoch another share of the negatives (He et al. 2014, 6.3).

    As many in every epoch: a block keeps its share of the negatives, rounded so that the shares of
    all blocks add up.
    """

    label_N: NDArray[np.float32]
    kept_before_b: Int64
    """Negatives kept of the blocks before each one, and of all [b + 1]."""
    num_positives: int

    @staticmethod
    def of(label_N: NDArray[np.float32], rate: float) -> "NegativeSampling":
        """Keep a share `rate` of the negatives."""
        starts = range(0, len(label_N), BLOCK_ROWS)
        positives_b = [int((label_N[s : s + BLOCK_ROWS] > 0.5).sum()) for s in starts]
        sizes_b = [min(BLOCK_ROWS, len(label_N) - s) for s in starts]
        negatives_b = np.subtract(sizes_b, positives_b)
        before_b = np.concatenate([[0], np.cumsum(negatives_b)])
        kept_before_b = np.rint(before_b * rate).astype(np.int64)
        return NegativeSampling(label_N, kept_before_b, sum(positives_b))

    @property
    def num_kept(self) -> int:
        """Impressions of an epoch."""
        return self.num_positives + int(self.kept_before_b[-1])

    def rows(self, block: int, *, seed: int, epoch: int) -> Int64:
        """The impressions of a block that an epoch sees, ascending."""
        start = block * BLOCK_ROWS
        positive = self.label_N[start : start + BLOCK_ROWS] > 0.5
        kept = int(self.kept_before_b[block + 1] - self.kept_before_b[block])
        rng = np.random.default_rng([seed, epoch, 1, block])
        drawn = rng.choice(np.flatnonzero(~positive), size=kept, replace=False)
        return start + np.sort(np.concatenate([np.flatnonzero(positive), drawn]))


def epoch_windows(
    num_impressions: int,
    *,
    seed: int,
    epoch: int,
    shuffle_rows: int = SHUFFLE_ROWS,
    sampling: NegativeSampling | None = None,
) -> Iterator[Window]:
    """The windows of an epoch, one after the other."""
    rng = np.random.default_rng([seed, epoch])
    num_blocks = -(-num_impressions // BLOCK_ROWS)
    blocks = np.arange(num_blocks)
    blocks_at_a_time = num_blocks
    if num_impressions > shuffle_rows:
        blocks = rng.permutation(num_blocks)
        blocks_at_a_time = max(1, shuffle_rows // BLOCK_ROWS)
    for start in range(0, num_blocks, blocks_at_a_time):
        chosen = blocks[start : start + blocks_at_a_time]
        if sampling is None:
            rows = (chosen[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
            rows = rows[rows < num_impressions]
        else:
            parts = [sampling.rows(int(block), seed=seed, epoch=epoch) for block in chosen]
            rows = np.concatenate(parts)
        yield Window(rng.permutation(rows), (chosen * BLOCK_ROWS).tolist())


def epoch_order(num_impressions: int, *, seed: int, epoch: int) -> Int64:
    """All of an epoch at once, for small splits."""
    return np.concatenate([w.rows for w in epoch_windows(num_impressions, seed=seed, epoch=epoch)])


def corrected_logit_shift(negative_rate: float) -> float:
    """What to add to a logit learnt from a share w of the negatives: log w.

    q = p / (p + (1 - p) / w) (He et al. 2014, section 6.3), so q / (1 - q) = w p / (1 - p).
    """
    return float(np.log(negative_rate))
