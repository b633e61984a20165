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
        [sys.executable, *command, str(SCRIPT), str(out), "ddp", "zero2"],
        check=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return {name: load_file(out / f"{name}.safetensors") for name in ("ddp", "zero2")}


@pytest.fixture(scope="module")
def on_one_rank(two_ranks: ModuleType) -> dict[str, Tensor]:
    return two_ranks.plain()


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_ranks_give_the_loss_of_one(
    strategy: str, on_two_ranks: dict[str, dict[str, Tensor]], on_one_rank: dict[str, Tensor]
) -> None:
    torch.testing.assert_close(
        on_two_ranks[strategy]["loss"], on_one_rank["loss"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_ranks_give_the_gradients_of_one(
    strategy: str, on_two_ranks: dict[str, dict[str, Tensor]], on_one_rank: dict[str, Tensor]
) -> None:
    found = on_two_ranks[strategy]
    names = [name for name in on_one_rank if name != "loss"]
    assert set(names) <= set(found)
    for name in names:
        torch.testing.assert_close(
            found[name].reshape(on_one_rank[name].shape), on_one_rank[name],
            rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{strategy} {name}: {text}",
        )  # fmt: skip


def test_the_batch_is_hard_enough(two_ranks: ModuleType, on_one_rank: dict[str, Tensor]) -> None:
    """Repeated items, own histories, absent modalities and both losses take part."""
    batch = two_ranks.make_batch(two_ranks.make_log())
    targets = batch.targets_BT[batch.targets_BT >= 0]
    assert len(targets) > len(targets.unique())
    assert not all(bool(present.all()) for present in batch.items.presence.values())
    assert on_one_rank["model.pair_temperature.log_scale"].abs() > 0
    assert on_one_rank["model.user_encoder.start_D"].abs().sum() > 0
