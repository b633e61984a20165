"""Two processes give what one gives."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytestmark = pytest.mark.ranks
RUNS = {
    "ddp": "default",
    "zero2": "default",
    "ddp-everything": "everything_plain",
    "zero2-everything": "everything_plain",
    "ddp-sigmoid": "sigmoid_plain",
    "ddp-influence": "influence_plain",
    "ddp-pull": "pull",
    "ddp-collaborative": "collaborative_plain",
    "zero2-collaborative": "collaborative_plain",
}
"""On two ranks → the case of one rank that must give the same."""
SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def two_ranks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    out = tmp_path_factory.mktemp("two_ranks")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [sys.executable, *command, str(SCRIPT), str(out), *RUNS],
        check=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return {name: load_file(out / f"{name}.safetensors") for name in RUNS}


@pytest.fixture(scope="module")
def on_one_rank(two_ranks: ModuleType) -> dict[str, dict[str, Tensor]]:
    return {case: two_ranks.plain(case) for case in two_ranks.CASES}


def rounding(tensor: Tensor) -> float:
    """What float32 sums in another order may differ by: small gradients are sums of large terms."""
    return 4e-6 * max(1.0, float(tensor.abs().max()))


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_give_the_loss_gradients_and_queue_of_one(
    run: str,
    on_two_ranks: dict[str, dict[str, Tensor]],
    on_one_rank: dict[str, dict[str, Tensor]],
) -> None:
    found = on_two_ranks[run]
    expected = {n: one for n, one in on_one_rank[RUNS[run]].items() if "health/" not in n}
    assert set(expected) <= set(found)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name].reshape(tensor.shape), tensor,
            rtol=1e-5 if name == "loss" else 1e-4, atol=rounding(tensor),
            msg=lambda text, name=name: f"{run} {name}: {text}",
        )  # fmt: skip


def test_health_says_the_same_of_gradients_on_two_ranks(
    on_two_ranks: dict[str, dict[str, Tensor]], on_one_rank: dict[str, dict[str, Tensor]]
) -> None:
    for name in ("health/gradient_image", "health/gradient_text"):
        found, expected = float(on_two_ranks["ddp"][name]), float(on_one_rank["default"][name])
        # Not quite: an item on both ranks counts as two.
        assert found == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("case", ["everything", "sigmoid", "influence", "collaborative"])
def test_tiles_and_chunks_change_nothing_on_one_rank(
    case: str, on_one_rank: dict[str, dict[str, Tensor]]
) -> None:
    found, expected = on_one_rank[case], on_one_rank[f"{case}_plain"]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=rounding(tensor))


def test_the_batch_is_hard_enough(
    two_ranks: ModuleType, on_one_rank: dict[str, dict[str, Tensor]]
) -> None:
    """Repeated items, own histories, absent modalities and both losses take part."""
    batch = two_ranks.make_batch(two_ranks.make_log())
    targets = batch.targets_BT[batch.targets_BT >= 0]
    assert len(targets) > len(targets.unique())
    assert not all(bool(present.all()) for present in batch.items.presence.values())
    grads = on_one_rank["everything"]
    for name in ("model.pair_temperature", "state.behaviour_temperature"):
        assert grads[f"{name}.log_scale"].abs() > 0
    assert grads["model.user_encoder.start_D"].abs().sum() > 0
    assert on_one_rank["sigmoid"]["state.sigmoid_bias.bias"].abs() > 0
    assert on_one_rank["collaborative"]["state.target_projection.weight"].abs().sum() > 0
    assert on_one_rank["collaborative"]["state.target_temperature.log_scale"].abs() > 0
    # The queue took this step's items in, dropped the oldest and kept one of the step before.
    assert sorted(grads["queue.age_Q"].unique().tolist())[0] > 0
