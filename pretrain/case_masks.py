"""What a case never proposes beside its history: what its user chose in the log.

Shapes: B cases, N catalogue items, U users of the cases.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from pretrain.baselines import binary
from pretrain.cases import Cases, columns_of, padded_rows, read, rows_of
from pretrain.metrics import PADDING


def mask_choices(asked: Cases, *, cases: Path, train: Path, catalogue: pa.Array) -> Cases:
    """The same questions, where a user's choices in the log are masked like the history.

    Users are told by `user_id`; of one whom the log lacks, only the history is masked. A target
    never is: who chooses a thing again may be asked about it. Cases that name `masked` themselves
    stay as they are.
    """
    if "masked" in columns_of(cases):
        return asked
    users_B = read(cases, "user_id")["user_id"].combine_chunks()
    log = read(train, "user_id", "item_id")
    log_users = log["user_id"].combine_chunks()
    if log_users.type != users_B.type:
        log_users, users_B = log_users.cast(pa.string()), users_B.cast(pa.string())
    known_U = pc.unique(users_B)
    place = pc.index_in(log_users, value_set=known_U)
    rows = rows_of(log.filter(pc.is_valid(place)), catalogue=catalogue, where=train)
    chosen_UN = sp.csr_matrix(
        (np.ones(len(rows), np.float32), (place.drop_null().to_numpy(), rows)),
        shape=(len(known_U), len(catalogue)),
    )
    case, target = (asked.targets_BT != PADDING).nonzero(as_tuple=True)
    target_BN = sp.csr_matrix(
        (np.ones(len(case), np.float32), (case, asked.targets_BT[case, target])),
        shape=asked.history_BN.shape,
    )
    own_BN = chosen_UN[pc.index_in(users_B, value_set=known_U).to_numpy()]
    masked_BN = binary(asked.history_BN + own_BN)
    masked_BN = binary(masked_BN - masked_BN.multiply(target_BN))
    masked_BM = padded_rows(
        masked_BN.indices.astype(np.int64), np.diff(masked_BN.indptr), filler=PADDING
    )
    return dataclasses.replace(asked, masked_BM=masked_BM)
