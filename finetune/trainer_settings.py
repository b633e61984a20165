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

    strategy: str | dict[str, Any] = "auto"
    """Lightning's strategy by name, or a class and its arguments (`class_path`, `init_args`), as
    `--config configs/zero2.yaml` has them for DeepSpeed ZeRO."""

    precision: str = "32-true"
    """Lightning's precision by name."""

    log_every_n_steps: int = 50
    """Steps between two logged training losses."""

    progress: Literal["rich", "none"] = "rich"
    """Progress bar of a single run; a ladder draws its own."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Any other argument of the Trainer, by its name."""

    def arguments(self) -> dict[str, Any]:
        """Those of Lightning's Trainer that say where it runs, with a strategy of its own.

        Raises:
            ValueError: a strategy that is no class of Lightning's, or arguments that it lacks.
        """
        names = ("accelerator", "devices", "strategy", "precision")
        found = {name: getattr(self, name) for name in names}
        if isinstance(self.strategy, dict):
            from jsonargparse import ArgumentError, ArgumentParser
            from pytorch_lightning.strategies import Strategy

            parser = ArgumentParser(exit_on_error=False)
            parser.add_subclass_arguments(Strategy, "trainer.strategy")
            # From the command line the arguments come beside the class.
            named = {k: v for k, v in self.strategy.items() if k in ("class_path", "init_args")}
            apart = {k: v for k, v in self.strategy.items() if k not in named}
            named["init_args"] = apart | named.get("init_args", {})
            try:
                given = parser.parse_object({"trainer": {"strategy": named}})
                found["strategy"] = parser.instantiate_classes(given).trainer.strategy
            except (ArgumentError, ValueError) as error:
                raise ValueError(
                    f"trainer.strategy: found {self.strategy}, expected a name, or class_path and "
                    f"init_args of a strategy as in configs/zero2.yaml; {error}"
                ) from error
        return found
