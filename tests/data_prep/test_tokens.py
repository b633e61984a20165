import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.dataset import open_dataset
from data_prep.settings import ShardConfig, TokenConfig
from data_prep.shard import shard_dataset
from data_prep.tokens import encode_texts, join_texts, open_tokenizer

TEXTS = [
    "A red dress, size 42: it's lovely! &amp; more",
    "naïve café 12345 日本語 😀  tabs\t and\nnewlines",
    "x" * 500,
    " ".join(f"word{number}" for number in range(200)),
    "DON'T I'LL we've ﬁne ½ “quoted” \x00 ‘s",  # noqa: RUF001
]


def test_ids_are_those_of_open_clips_own_tokenizer() -> None:
    from open_clip import SimpleTokenizer

    for length in (77, 16):
        theirs = SimpleTokenizer(context_length=length)(TEXTS).numpy()
        ours = encode_texts(TEXTS, TokenConfig(tokenizer="open_clip", max_tokens=length))
        for ids, expected in zip(ours, theirs, strict=True):
            assert ids == expected[: len(ids)].tolist()
            assert not expected[len(ids) :].any()


def test_stored_ids_are_the_texts_tokenised(toy_config: ShardConfig, tmp_path: Path) -> None:
    tokens = TokenConfig(tokenizer="open_clip", max_tokens=12)
    folder = tmp_path / "dataset"
    shard_dataset(dataclasses.replace(toy_config, dataset_dir=str(folder), tokens=tokens))
    dataset = open_dataset(folder)
    assert dataset.manifest.modalities["text"]["tokens"]["max_tokens"] == 12
    content = dataset.content()
    rows = [239, 0, 64, 63, 1]
    ids, counts = content.tokens(rows, length=14, padding=7)
    for row, stored, count in zip(rows, ids, counts, strict=True):
        text = join_texts(content.read(row).texts, ("title", "description"))
        expected = encode_texts([text], tokens)[0]
        assert stored[:count].tolist() == expected
        assert np.all(stored[count:] == 7)
    assert (counts == 0).any() or all(content.read(row).texts for row in rows)


def test_a_tokenizer_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.jsn").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"found no tokenizer\.json"):
        open_tokenizer(TokenConfig(tokenizer=str(tmp_path)))
    with pytest.raises(ValueError, match="no installed Python package"):
        open_tokenizer(TokenConfig(tokenizer="package:not_there/folder"))


def test_tokenising_does_not_import_torch() -> None:
    code = (
        "import sys; from data_prep.tokens import encode_texts; "
        "from data_prep.settings import TokenConfig; "
        "encode_texts(['a'], TokenConfig(tokenizer='open_clip')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
