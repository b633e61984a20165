"""What is asked of a released folder before anything is built, sized or run by it.

A release may come from anybody. Its files are those that its config names by checksum; its config
must describe the very tensors of its weights, which is found out without memory for either; and
nothing in it may name code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from data_prep.checksums import file_checksum

Shapes = dict[str, tuple[int, ...]]

NAMES_CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
"""Keys of a transformers config that say where code is to be fetched."""
NAMES_KERNELS = re.compile(r"_?(attn|experts|ffn)_implementation.*")
"""And those whose values may, by a name with a slash."""
MOST_BESIDE = 1 << 28
"""Numbers in buffers that are computed and not loaded, such as masks."""
COUNTS_LAYERS = re.compile(r"layer|depth|block", re.IGNORECASE)


def check_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Refuse files that are not those that were released.

    Raises:
        ValueError: it names the file.
    """
    for name, digest in digests.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder}: found a file {name!r}, expected names inside the folder")
        if not path.is_file():
            raise ValueError(
                f"{path}: found no such file, expected it by config.json; copy it anew"
            )
        if file_checksum(path) != digest:
            raise ValueError(
                f"{path}: found another content than was released; copy the release anew"
            )


def weight_shapes(path: Path) -> Shapes:
    """Name → shape of the tensors of a weights file, from its header.

    Raises:
        ValueError: no such file, or a damaged one.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error


def check_settings(value: object, *, num_tensors: int, source: Path, key: str = "") -> None:
    """Refuse an architecture that names code, or has more layers than its weights have tensors.

    Raises:
        ValueError: it names the key.
    """
    if isinstance(value, dict):
        for name, one in value.items():
            check_settings(one, num_tensors=num_tensors, source=source, key=f"{key}.{name}")
        return
    if isinstance(value, list | tuple):
        for one in value:
            check_settings(one, num_tensors=num_tensors, source=source, key=key)
        return
    name = key.rpartition(".")[2]
    named = any(part in NAMES_CODE for part in key.split(".")) and value not in (None, False)
    kernels = NAMES_KERNELS.fullmatch(name) and isinstance(value, str) and "/" in value
    if named or kernels:
        raise ValueError(
            f"{source}: {key.lstrip('.')}: found {value!r}, which names code to be fetched "
            "and run, expected none; use a release of a source that you trust"
        )
    is_count = isinstance(value, int) and not isinstance(value, bool)
    if is_count and COUNTS_LAYERS.search(name) and int(value) > num_tensors:  # type: ignore[call-overload]
        raise ValueError(
            f"{source}: {key.lstrip('.')}: found {value}, but the weights have {num_tensors} "
            "tensors; use a config.json and a model.safetensors that belong together"
        )


def check_shapes(build: Callable[[], nn.Module], *, expected: Shapes, source: Path) -> None:
    """Refuse a config that does not describe these weights, before its model takes memory.

    Raises:
        ValueError: it names the first tensor that differs, or what the config has wrong.
    """
    try:
        with torch.device("meta"):
            model = build()
    except Exception as error:  # libraries meet any settings, and raise anything
        raise ValueError(
            f"{source}: describes no model that can be built ({type(error).__name__}: "
            f"{str(error)[:300]}); use the config.json that was released"
        ) from error
    found: Shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    beside = sum(one.numel() for name, one in model.named_buffers() if name not in found)
    if beside > MOST_BESIDE:
        raise ValueError(
            f"{source}: describes a model with {beside:,} constants beside its weights, expected "
            f"at most {MOST_BESIDE:,}; use the config.json that was released"
        )
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{source}: weights do not fit: {name} has the shape {expected.get(name)} in the "
                f"file and {found.get(name)} by the config; use files that belong together"
            )
