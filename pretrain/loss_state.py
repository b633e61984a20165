"""What the losses learn or remember beside the two encoders; it is not part of a release."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.memory_queue import VectorQueue
from pretrain.model import Temperature


class SigmoidBias(nn.Module):
    """Learnt bias of the sigmoid loss, -10 at step 0 (SigLIP, Zhai et al. 2023, section 3.2).

    A module of its own, since ZeRO-3 gathers a parameter when its module is called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([-10.0]))

    def forward(self) -> Tensor:
        """The bias, [1]."""
        return self.bias.float()


class LossState(nn.Module):
    """Only what the settings need, so that no parameter is left without a gradient."""

    def __init__(
        self,
        *,
        width: int,
        temperature: float,
        behaviour: bool,
        sigmoid: bool,
        queue_size: int,
        target_width: int | None = None,
    ) -> None:
        """`target_width` is that of the collaborative target, None without one."""
        super().__init__()
        self.behaviour_temperature = Temperature(temperature) if behaviour else None
        self.sigmoid_bias = SigmoidBias() if sigmoid else None
        self.queue = VectorQueue(queue_size, width=width) if queue_size else None
        self.target_projection: nn.Linear | None = None
        self.target_temperature: Temperature | None = None
        if target_width is not None:
            self.target_projection = nn.Linear(target_width, width, bias=False)
            self.target_temperature = Temperature(temperature)
