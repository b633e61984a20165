"""config.json of a release: everything beside the weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.checksums import checksum
from data_prep.typed_json import from_json
from pretrain.model import ModelConfig
from pretrain.user_features import UserColumn

RELEASE_FORMAT = "triptych-release"
RELEASE_VERSION = 2
CONFIG_FILE, WEIGHTS_FILE, ID_MAP_FILE = "config.json", "model.safetensors", "id_map.parquet"


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """Everything beside the weights. Plain JSON values throughout."""

    model: ModelConfig
    architectures: dict[str, dict[str, Any]]
    """Modality → what `Backbone.architecture()` says."""

    feature_widths: dict[str, int]
    text_fields: tuple[str, ...]
    vector_widths: dict[str, int]
    num_items: int
    dataset: str
    dataset_fingerprint: str
    """SHA-256 of the manifest of the dataset that was trained on."""

    newest_event: int
    """Newest event that training has seen, unix milliseconds."""

    valid_start: int
    """The cut-off of the dataset that was trained on, unix milliseconds."""

    user_columns: tuple[UserColumn, ...] = ()
    """User features that the user encoder reads, with their vocabularies."""

    reused: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What training built on, see `reuse.py`; `newest_event` counts theirs too."""

    files: dict[str, str] = field(default_factory=dict)
    """The other files of the release → XXH3 of 128 bits; none in releases of before."""

    format: str = RELEASE_FORMAT
    version: int = RELEASE_VERSION

    @property
    def tuned_towers(self) -> set[str]:
        """Modalities whose backbone a training has changed, this one's or an earlier release's."""
        earlier = self.reused.get("warm_start", {}).get("tuned_towers", [])
        own = {name for name, tower in self.model.towers.items() if tower.train != "frozen"}
        return own | set(earlier)

    def to_json(self) -> str:
        """As config.json holds it."""
        return signed(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes, *, source: Path) -> ReleaseConfig:
        """Read config.json.

        Raises:
            ValueError: not a release, of another version, or altered since it was written.
        """
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{source}: found no valid JSON ({error}); copy it anew, or run python -m pretrain "
                "export again"
            ) from error
        found = (entry.get("format"), entry.get("version")) if isinstance(entry, dict) else None
        if found != (RELEASE_FORMAT, RELEASE_VERSION):
            raise ValueError(
                f"{source}: found format and version {found}, this code reads "
                f"{(RELEASE_FORMAT, RELEASE_VERSION)}; run python -m pretrain export again"
            )
        given = entry.pop("checksum", None)
        if given is not None and given != _checksum(entry):
            raise ValueError(
                f"{source}: found values other than were written, by its checksum; copy it anew, "
                "or run python -m pretrain export again"
            )
        config = from_json(cls, entry, where=str(source))
        for name, tower in config.model.towers.items():
            needed: list[dict[str, Any]] = [config.architectures, config.feature_widths]
            needed += [config.vector_widths] if tower.library == "given" else []
            if any(name not in one for one in needed):
                raise ValueError(
                    f"{source}: found a tower {name!r} without its architecture or width; run "
                    "python -m pretrain export again"
                )
        return config


def signed(entry: dict[str, Any]) -> str:
    """JSON with a checksum of what it says, which tells damage; it proves nobody's authorship."""
    entry = {name: value for name, value in entry.items() if name != "checksum"}
    return json.dumps(entry | {"checksum": _checksum(entry)}, indent=2)


def _checksum(entry: dict[str, Any]) -> str:
    return checksum(json.dumps(entry, sort_keys=True).encode())
