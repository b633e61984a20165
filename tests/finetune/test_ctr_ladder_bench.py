"""The parts of the benchmark ctr_ladder that are its own: its slices, and how blocks are pooled."""

import ctr_blocks as blocks
import films_protocol as films
import numpy as np
import pyarrow as pa
import pytest

from finetune.metrics import auc


def test_a_block_ends_where_the_next_one_begins_and_validates_on_the_tenth_before_it() -> None:
    time = np.random.default_rng(0).permutation(1000)
    interactions = pa.table({"user_id": time % 7, "item_id": time % 11, "timestamp": time})
    made = [films.ctr_block(interactions, number) for number in range(5)]
    for number, block in enumerate(made):
        seen = block.interactions["timestamp"].to_numpy()
        assert block.test_start == 500 + 100 * number
        assert seen.max() == (999 if number == 4 else block.test_start + 99)
        tenth = (seen >= block.valid_start) & (seen < block.test_start)
        assert tenth.sum() == pytest.approx(block.test_start / 10, abs=1)


def test_slices_count_what_was_rated_before_the_block_whatever_the_rating() -> None:
    item = [1] * 10 + [2] * 9 + [3]
    user = [5] * 19 + [6]
    interactions = pa.table({"user_id": user, "item_id": item, "timestamp": [*range(19), 30]})
    masks = blocks.protocol_masks(
        interactions, before=30, user_N=np.array([5, 5, 6, 6]), item_N=np.array([1, 2, 3, 4])
    )
    assert masks["cold_tail"].tolist() == [False, True, True, True]
    assert masks["cold"].tolist() == [False, False, True, True]
    assert masks["warm_head"].tolist() == [True, False, False, False]
    assert masks["new_users"].tolist() == [False, False, True, True]


def made_block(seed: int, *, better: float) -> object:
    rng = np.random.default_rng(seed)
    label = (rng.random(400) < 0.5).astype(np.float32)
    noise = rng.normal(size=(4, 400))
    everyone = np.ones(400, bool)
    return blocks.BlockScores(
        user_N=rng.integers(30, size=400) + 20 * seed,  # some users are in two blocks
        label_N=label,
        masks=dict.fromkeys(blocks.SLICES, everyone),
        scores={
            "none": [noise[0], noise[1]],
            "raw": [noise[0], noise[1]],
            "aligned": [better * label + noise[2], better * label + noise[3]],
        },
    )


def test_a_figure_is_the_mean_over_blocks_and_seeds() -> None:
    made = [made_block(seed, better=1.0) for seed in range(3)]
    figures, differences = blocks.side_by_side(made, num_resamples=200)
    expected = np.mean(
        [auc(block.label_N, score) for block in made for score in block.scores["aligned"]]
    )
    one = figures["aligned"]["all"]
    assert one["mean"] == pytest.approx(expected, abs=1e-4)
    assert one["low"] < one["mean"] < one["high"]
    assert len(one["seeds"]) == 2
    assert differences["aligned_minus_none"]["cold_tail"]["low"] > 0


def test_systems_that_say_the_same_differ_by_nothing() -> None:
    made = [made_block(seed, better=0.0) for seed in range(2)]
    _, differences = blocks.side_by_side(made, num_resamples=50)
    assert differences["raw_minus_none"]["all"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    other = differences["aligned_minus_none"]["all"]
    assert other["low"] < other["mean"] < other["high"]


def test_users_are_drawn_with_all_their_blocks() -> None:
    """The spread over draws is that of users: the same block twice is no more certain than once."""
    one = made_block(0, better=1.0)

    def width(made: list) -> float:
        figures, _ = blocks.side_by_side(made, num_resamples=400)
        return figures["aligned"]["all"]["high"] - figures["aligned"]["all"]["low"]

    assert width([one, one]) == pytest.approx(width([one]), rel=0.05)
