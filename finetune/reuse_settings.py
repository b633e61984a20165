"""What a run takes over from runs before it. Settings only, as `--help` must not wait for torch."""

from dataclasses import dataclass
from pathlib import Path

from finetune.content_settings import check_setting as check


@dataclass(frozen=True, kw_only=True)
class ReuseConfig:
    """An older run to go on from, or a larger one to learn from."""

    warm_start: Path | None = None
    """Run folder whose weights are the initial ones; its vocabulary grows by new values. Same head,
    rung, tasks and features. Scales of numbers, labels and cosines, codebooks, what is hashed, and
    what was learnt beside the model (places, variances, an imputation) are the older run's."""

    teacher: Path | None = None
    """Run folder whose predictions of the first task are learnt beside the labels (Hinton et al.
    2015), without the place; any head, the same binary label."""

    teacher_weight: float = 0.5
    """Share of the teacher in the first task's loss."""

    temperature: float = 1.0
    """Divides the log odds of both where they are compared."""

    def __post_init__(self) -> None:
        weight = self.teacher_weight
        check(0 < weight <= 1, "reuse.teacher_weight", weight, "a share in (0, 1]")
        check(self.temperature > 0, "reuse.temperature", self.temperature, "a positive number")
