"""Settings of what the dataset must not know of people."""

from dataclasses import dataclass, field
from typing import Literal

IdKind = Literal["user", "item"]


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Whose rows never reach the dataset, and whose ids are written as keyed hashes."""

    forget: str | None = None
    """Users to leave out of every table: Parquet, CSV or TSV with a column of their ids as they are
    in the raw tables, or .txt with one a line; null: none. ${VARIABLES} expand."""
    forget_column: str = "user_id"
    """Column of the ids in `forget`."""
    hash_ids: list[IdKind] = field(default_factory=list)
    """Ids that are written as the first 128 bits of their HMAC-SHA-256, in hexadecimal. Who has
    the key can make the same of any id (data_prep.privacy.hash_ids); nobody else can tell whose it
    is."""
    key_file: str | None = None
    """File with the key, of 16 bytes or more; null: it is in an environment variable."""
    key_variable: str = "TRIPTYCH_ID_KEY"
    """Environment variable with the key, where no key_file is given. It is written nowhere, and
    every stage needs it, as a dataset of another key is another dataset."""

    def __post_init__(self) -> None:
        if len(set(self.hash_ids)) < len(self.hash_ids):
            raise ValueError(f"privacy.hash_ids: found {self.hash_ids}, expected each kind once")
