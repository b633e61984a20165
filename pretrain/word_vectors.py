"""Words of the catalogue's texts → vectors: tf-idf, then its leading directions.

Off-the-shelf sentence encoders blur what a catalogue says in exact words (a colour, a cut, a
department). These vectors keep it, need no network and no behaviour, and enter pre-training as
given vectors (`items.vectors` of data_prep, library `given`).

Shapes: N items, V words, F directions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

WORD = re.compile(r"[^\W_]+")
MIN_ITEMS = 3
"""Words of fewer items say nothing about any other item."""


def words_of(fields: Mapping[str, str | None], *, prose: frozenset[str]) -> list[str]:
    """Lower-case words of an item's texts; a field that is no prose counts as one word too."""
    words: list[str] = []
    for name, text in fields.items():
        if not text:
            continue
        words += WORD.findall(text.lower())
        if name not in prose:
            words.append(f"{name}={text.lower()}")
    return words


def tf_idf(documents: Sequence[Sequence[str]]) -> sp.csr_matrix:
    """Rows [N, V] of unit length: (1 + log tf) · log(N / df) (Manning et al. 2008, fig. 6.15)."""
    items_of = Counter(word for words in documents for word in set(words))
    kept = sorted(word for word, count in items_of.items() if count >= MIN_ITEMS)
    if not kept:
        raise ValueError(
            f"texts: found no word that {MIN_ITEMS} of the {len(documents)} items share; these "
            "texts carry no word vectors"
        )
    column = {word: number for number, word in enumerate(kept)}
    rows, columns, values = [], [], []
    for row, words in enumerate(documents):
        for word, count in Counter(words).items():
            if word in column:
                rows.append(row)
                columns.append(column[word])
                values.append((1 + np.log(count)) * np.log(len(documents) / items_of[word]))
    weight_NV = sp.csr_matrix(
        (np.array(values, np.float32), (rows, columns)), shape=(len(documents), len(kept))
    )
    norm_N = np.sqrt(np.asarray(weight_NV.multiply(weight_NV).sum(1)).ravel())
    return sp.csr_matrix(sp.diags(1 / np.maximum(norm_N, 1e-9)) @ weight_NV)


def word_vectors(documents: Sequence[Sequence[str]], *, width: int) -> NDArray[np.float32]:
    """Project tf-idf rows on their leading directions [N, F] (latent semantic analysis).

    Deerwester et al. 1990: inner products of the rows are the best of rank F to those of tf-idf.
    """
    weight_NV = tf_idf(documents).astype(np.float64)
    limit = min(weight_NV.shape) - 1
    if not 1 <= width <= limit:
        raise ValueError(f"width: found {width}, expected 1 to {limit} for {weight_NV.shape}")
    start = np.ones(min(weight_NV.shape))  # a fixed start gives the same vectors on every run
    left_NF, scale_F, _ = svds(weight_NV, k=width, v0=start)
    return np.ascontiguousarray(left_NF * scale_F, dtype=np.float32)
