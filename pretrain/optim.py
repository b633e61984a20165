"""Parameter groups, warm-up and cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019) with warm-up and cosine decay."""

    lr: float = 1e-3
    """Peak learning rate."""

    backbone_lr: float = 1e-4
    """Peak learning rate of backbones that are tuned."""

    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; vectors, norms and ids get none."""

    warmup_steps: int = 50
    """Optimizer steps of linear warm-up."""

    final_lr_ratio: float = 0.05
    """Learning rate at the end, as a share of the peak."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.backbone_lr <= 0 or self.weight_decay < 0:
            raise ValueError(
                "optim: lr and backbone_lr must be positive and weight_decay not negative, got "
                f"{self.lr}, {self.backbone_lr}, {self.weight_decay}"
            )
        if self.warmup_steps < 0 or not 0 <= self.final_lr_ratio <= 1:
            raise ValueError(
                "optim: warmup_steps must not be negative and final_lr_ratio in [0, 1], got "
                f"{self.warmup_steps}, {self.final_lr_ratio}"
            )


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters: matrices, vectors, and both again for backbones."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and "ids." not in name and "embedding" not in name
            groups.setdefault(("backbones." in name, decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": config.backbone_lr if is_backbone else config.lr,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (is_backbone, decays), parameters in groups.items()
        ],
        betas=(0.9, 0.98),  # CLIP's second moment: steadier under a changing temperature
    )


def warmup_cosine(step: int, *, config: OptimConfig, total_steps: int) -> float:
    """Share of the peak learning rate at an optimizer step (SGDR, Loshchilov & Hutter 2017)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine
