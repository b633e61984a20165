"""What is known of the users of an evaluation's cases beside their histories.

Letters: B cases.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pretrain.cases import read

log = logging.getLogger(__name__)


def read_users(users: Path, *, cases: Path, columns: list[str]) -> pa.Table:
    """[B rows] these features of each case's user, null where `users` lacks the user.

    Args:
        users: Parquet with user_id and the columns.
        cases: the table of cases, for its user_id.
        columns: what the model reads.

    Raises:
        ValueError: a missing column, a user twice, or none of the cases' users.
    """
    table, asked = read(users, "user_id", *columns), read(cases, "user_id")["user_id"]
    known = table["user_id"].combine_chunks()
    if (count := len(pc.unique(known))) != len(known):
        raise ValueError(f"{users}: found {len(known)} rows of {count} users, expected each once")
    if known.type != asked.type:
        known, asked = known.cast(pa.string()), asked.cast(pa.string())
    rows = pc.index_in(asked.combine_chunks(), value_set=known)
    if rows.null_count == len(rows):
        raise ValueError(
            f"{users}: found none of the users of {cases}, the first is {asked[0].as_py()!r}; give "
            "the users of the dataset that the cases are of"
        )
    if rows.null_count:
        log.warning("%s: %d of %d cases have a user who is unknown there", users,
                    rows.null_count, len(rows))  # fmt: skip
    return table.select(columns).take(rows)
