"""What is handed to Lightning. No torch, as `--help` must not wait."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """What is handed to Lightning's Trainer as it is."""

    accelerator: str = "auto"
    """cpu, gpu, … or auto."""

    devices: int | str = 1
    """How many devices, or auto."""

    strategy: str = "auto"
    """Lightning's strategy by name."""

    precision: str = "32-true"
    """Lightning's precision by name."""

    log_every_n_steps: int = 50
    """Steps between two logged training losses."""

    progress: Literal["rich", "none"] = "rich"
    """Progress bar of a single run; a ladder draws its own."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Any other argument of the Trainer, by its name."""
