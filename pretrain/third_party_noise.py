"""Lines of other packages that a user can do nothing about, or that are not true of us.

Each is named by what it says, so that a new one is seen. `pretrain` and `finetune` share them.
"""

from __future__ import annotations

import logging
import warnings

WARNINGS = (
    "The `srun` command is available",  # one machine is no mistake
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own call
    r"Found \d+ module\(s\) in eval mode",  # frozen towers are meant to be
    "Experiment logs directory .* exists and is not empty",  # metrics.csv is put aside
    ".*does not have many workers",  # ours decode in threads
    ".*your dataloader is not resumable",  # it is
    "LightningCLI's args parameter",  # as intended
)
"""How the messages of warnings begin, as regular expressions."""
LOGGED = ("Tip:", "TPU available: False")
"""What lines of Lightning's log hold."""
LIGHTNING = logging.getLogger("pytorch_lightning.utilities.rank_zero")


def silence() -> None:
    """Leave these lines out from here on, on this process."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    # DeepSpeed still calls collectives by names that torch 2.14 is about to rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    LIGHTNING.addFilter(_is_news)  # once, however often it is asked for


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(known in message for known in LOGGED)
