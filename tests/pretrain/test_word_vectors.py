"""Word vectors agree with a dense twin and refuse what they cannot do."""

import numpy as np
import pytest

from pretrain.word_vectors import tf_idf, word_vectors, words_of

DOCUMENTS = [
    words.split()
    for words in ("red coat", "red red hat", "red coat hat", "blue coat", "blue hat", "blue coat x")
]


def test_words_are_split_and_short_fields_count_as_one_word_too() -> None:
    words = words_of({"a": "Red Coat", "b": "Warm, soft.", "c": None}, prose=frozenset({"b"}))
    assert words == ["red", "coat", "a=red coat", "warm", "soft"]


def test_tf_idf_is_that_of_the_formula() -> None:
    weight = tf_idf(DOCUMENTS).toarray()
    # blue, coat, hat, red are each in 3 or 4 of 6 items; x is in one and left out.
    expected = np.array([0, 0, np.log(6 / 3), (1 + np.log(2)) * np.log(6 / 3)])
    np.testing.assert_allclose(weight[1], expected / np.linalg.norm(expected), rtol=1e-6)


def test_vectors_keep_the_inner_products_of_the_best_rank() -> None:
    vectors = word_vectors(DOCUMENTS, width=2)
    left, scale, right = np.linalg.svd(tf_idf(DOCUMENTS).toarray())
    best = left[:, :2] * scale[:2] @ right[:2]
    np.testing.assert_allclose(vectors @ vectors.T, best @ best.T, atol=1e-5)


def test_no_shared_word_and_too_many_directions_are_errors() -> None:
    with pytest.raises(ValueError, match="no word"):
        tf_idf([["a"], ["b"]])
    with pytest.raises(ValueError, match="expected 1 to 3"):
        word_vectors(DOCUMENTS, width=4)
