"""Which weights of a backbone are trained, and how its memory is spared.

Every library's encoder holds one stack of equal blocks. It is found by its structure, so that no
list of model names has to be kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.backbone import Backbone, TowerConfig

LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"
"""How peft names the two factors of an adapter."""


def block_stack(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The stack of equal blocks that holds most of the model's weights, with its name.

    Raises:
        ValueError: there is none.
    """
    name, largest, size = "", [], 0
    for found_name, module in model.named_modules():
        blocks = (
            list(module.children()) if isinstance(module, nn.ModuleList | nn.Sequential) else []
        )
        if not blocks or len({type(block) for block in blocks}) > 1:
            continue
        found_size = sum(parameter.numel() for parameter in module.parameters())
        # A list of bare layers is no stack; of nested stacks of equal size, the outer one counts.
        if found_size > size and any(list(block.children()) for block in blocks):
            name, largest, size = found_name, blocks, found_size
    if not largest:
        raise ValueError(
            f"{type(model).__name__}: found no stack of equal blocks, which `top_k`, `lora` and "
            "`checkpointing: blocks` need; set train to frozen or full and checkpointing to none"
        )
    return name, largest


def tune(backbone: Backbone, config: TowerConfig) -> None:
    """Set up a backbone that holds its starting weights for training as `config` says.

    Raises:
        ValueError: more blocks asked for than there are, no layer for an adapter, no peft.
    """
    if config.checkpointing == "blocks":
        checkpoint_blocks(backbone)
    if config.train == "frozen":
        backbone.requires_grad_(False)
    elif config.train == "top_k":
        train_top(backbone, k=config.top_k)
    elif config.train == "lora":
        add_lora(backbone, rank=config.lora_rank, alpha=config.lora_alpha)


def train_top(backbone: Backbone, *, k: int) -> None:
    """Train the last `k` blocks and what comes after them, and nothing else.

    Raises:
        ValueError: the backbone has fewer blocks.
    """
    stack_name, blocks = block_stack(backbone)
    if k > len(blocks):
        raise ValueError(
            f"top_k is {k}, but {stack_name} has {len(blocks)} blocks; set train to full, or top_k "
            f"to at most {len(blocks)}"
        )
    backbone.requires_grad_(False)
    for block in blocks[-k:]:
        block.requires_grad_(True)
    names = [name for name, _ in backbone.named_parameters()]
    last = max(place for place, name in enumerate(names) if name.startswith(stack_name + "."))
    after = [parameter for _, parameter in list(backbone.named_parameters())[last + 1 :]]
    for parameter in after + backbone.head_parameters():
        parameter.requires_grad_(True)


def add_lora(backbone: Backbone, *, rank: int, alpha: float) -> None:
    """Freeze the backbone and add low-rank adapters to the linear layers of its blocks.

    W x + alpha / rank · B A x with B zero at the start (LoRA, Hu et al. 2021, section 4.1).

    Raises:
        ValueError: peft is not installed, or the blocks hold no linear layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ValueError(
            f"train: lora needs the package {error.name}, which is not installed; "
            "run pip install peft"
        ) from error
    open_attention(backbone)
    targets = _lora_targets(backbone)
    backbone.requires_grad_(False)
    lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)  # type: ignore[arg-type]
    inject_adapter_in_model(lora, backbone)


class OpenAttention(nn.Module):
    """torch's own self-attention with its weights in linear layers, where adapters can take hold.

    peft can adapt nn.MultiheadAttention as it is, but by other parameter objects in every forward
    pass, which DDP and ZeRO do not survive (and peft 0.21 adds the update of `out_proj` twice).
    """

    def __init__(self, closed: nn.MultiheadAttention) -> None:
        super().__init__()
        if closed.in_proj_weight is None or not closed.batch_first or closed.bias_k is not None:
            raise ValueError(
                "train: lora needs self-attention with one joint projection and the batch first; "
                "found another nn.MultiheadAttention; set train to frozen, top_k or full"
            )
        width = closed.embed_dim
        self.heads, self.dropout = closed.num_heads, closed.dropout
        self.joint_in_proj = nn.Linear(width, 3 * width, bias=closed.in_proj_bias is not None)
        self.joint_in_proj.weight = closed.in_proj_weight
        self.joint_in_proj.bias = closed.in_proj_bias
        self.out_proj = nn.Linear(width, width, bias=closed.out_proj.bias is not None)
        self.out_proj.weight, self.out_proj.bias = closed.out_proj.weight, closed.out_proj.bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """As nn.MultiheadAttention's, for query, key and value that are one tensor [n, S, D]."""
        # Equal, but not the same objects under ZeRO-3, whose hooks wrap each of them.
        assert query.shape == key.shape == value.shape, "self-attention only"
        q, k, v = self.joint_in_proj(query).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask  # True is "keep out" there and "let through" here
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=attn_mask
            if attn_mask is None or attn_mask.dtype == torch.bool
            else attn_mask.to(q.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(-2)), None


def open_attention(backbone: Backbone) -> None:
    """Put `OpenAttention` in the place of torch's own in every block."""
    for block in block_stack(backbone)[1]:
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.MultiheadAttention):
                    if getattr(parent, "ln_1_kv", None) is not None:  # open_clip's name for it
                        raise ValueError(
                            f"train: lora: found cross-attention in {type(parent).__name__}, "
                            "expected self-attention; set train to frozen, top_k or full"
                        )
                    setattr(parent, name, OpenAttention(child))


def _lora_targets(backbone: Backbone) -> list[str]:
    """Full names of the linear layers in the blocks."""
    stack_name, _ = block_stack(backbone)
    targets = [
        name
        for name, module in backbone.named_modules()
        if name.startswith(stack_name + ".") and isinstance(module, nn.Linear)
    ]
    if not targets:
        raise ValueError(
            f"{type(backbone).__name__}: found no linear layer in {stack_name}, which "
            "`train: lora` needs; set train to frozen, top_k or full"
        )
    return targets


def merge_lora(weights: Mapping[str, Tensor], *, rank: int, alpha: float) -> dict[str, Tensor]:
    """Add the adapters in a state dict to the weights they adapt, under the names without them.

    Works on names alone, so a release is written and read without peft.
    """
    merged = {name: value for name, value in weights.items() if ".lora_" not in name}
    for name, factor_rI in weights.items():
        if not name.endswith(LORA_A):
            continue
        layer = name.removesuffix(LORA_A)
        update_OI = alpha / rank * weights[layer + LORA_B].double() @ factor_rI.double()
        target = f"{layer}.base_layer.weight"
        merged[target] = (merged[target].double() + update_OI).to(merged[target].dtype)
    return {
        name.replace(".joint_in_proj.base_layer.", ".in_proj_").replace(".base_layer", ""): value
        for name, value in merged.items()
    }


def merge_tuned(
    weights: Mapping[str, Tensor], towers: Mapping[str, TowerConfig]
) -> dict[str, Tensor]:
    """Weights of a training run → those of a release: adapters merged where towers had them."""
    result = dict(weights)
    for name, tower in towers.items():
        prefix = f"item_encoder.backbones.{name}."
        own = {key: value for key, value in result.items() if key.startswith(prefix)}
        if tower.train == "lora":
            result = {key: value for key, value in result.items() if key not in own}
            result |= merge_lora(own, rank=tower.lora_rank, alpha=tower.lora_alpha)
    return result


def checkpoint_blocks(backbone: Backbone) -> None:
    """Compute each block again in the backward pass (Chen et al. 2016)."""
    for block in block_stack(backbone)[1]:
        block.forward = functools.partial(_recomputed, block, block.forward)


def _recomputed(
    block: nn.Module,
    forward: Callable[..., Any],
    *inputs: Any,  # noqa: ANN401 - the block's own
    **named: Any,  # noqa: ANN401
) -> object:
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, *inputs, use_reentrant=False, **named)
    return forward(*inputs, **named)
