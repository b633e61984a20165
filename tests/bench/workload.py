"""A made-up shop for the data-plane benchmarks: photo-like JPEGs, texts and a Zipf log, seeded.

    python tests/bench/workload.py --out_dir build/bench --num_items 20000

A picture has the spectrum of a photograph: slow colour gradients and a 1/f texture, so that its
size (mean 17 kB) and the cost of decoding it are those of a 224-pixel photo. A text holds frequent
words of CLIP's vocabulary and a few numbers (mean 265 bytes, 57 tokens). Item i's picture and text
depend on (seed, i) alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gzip
import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from numpy.typing import NDArray

VERSION = 1
SIDE = 224
KNOTS = 6
TEXTURE_SIDE = 1024
TEXTURE_AMPLITUDE = 17.1
JPEG_QUALITY = 88
NUM_WORDS = 20_000
ZIPF = 0.9
FIRST_TIME_MS = 1_735_689_600_000  # 2025-01-01
LOG_DAYS = 180
ROWS_AT_ONCE = 2_048


@dataclass(frozen=True, kw_only=True)
class WorkloadConfig:
    """How large the shop is."""

    num_items: int = 20_000
    interactions_per_item: int = 50
    interactions_per_user: int = 200
    seed: int = 0

    @property
    def num_interactions(self) -> int:
        """Rows of the log."""
        return self.num_items * self.interactions_per_item


@dataclass(frozen=True)
class Workload:
    """Where the tables lie."""

    dir: Path

    @property
    def items(self) -> Path:
        """item_id int64, image (JPEG bytes), text."""
        return self.dir / "items.parquet"

    @property
    def interactions(self) -> Path:
        """user_id int64, item_id int64, time int64 (unix ms)."""
        return self.dir / "interactions.parquet"

    def column(self, name: str) -> Path:
        """`images` or `texts` end to end in one file, to be mapped into memory."""
        return self.dir / f"{name}.bin"

    def offsets(self, name: str) -> Path:
        """Where each value of such a file begins; one more than there are values."""
        return self.dir / f"{name}.offsets.npy"


def prepare_workload(out_dir: Path, config: WorkloadConfig) -> Workload:
    """Write the tables, or find those that an earlier run wrote whole."""
    name = f"workload-v{VERSION}-{config.num_items}-{config.interactions_per_item}-{config.seed}"
    done = Workload((out_dir / name).resolve())
    if done.dir.is_dir():
        return done
    unfinished = Workload(done.dir.with_name(name + ".tmp"))
    shutil.rmtree(unfinished.dir, ignore_errors=True)
    unfinished.dir.mkdir(parents=True)
    _write_items(unfinished, config)
    pq.write_table(draw_interactions(config), unfinished.interactions)
    unfinished.dir.rename(done.dir)
    return done


def draw_picture(item: int, *, seed: int) -> bytes:
    """JPEG bytes of one item."""
    rng = np.random.default_rng((seed, 0, item))
    knots = rng.uniform(20, 235, (3, KNOTS, KNOTS)).astype(np.float32)
    gradients = _ramps() @ knots @ _ramps().T
    y, x = rng.integers(0, TEXTURE_SIDE - SIDE, 2)
    amplitude = np.float32(TEXTURE_AMPLITUDE * rng.lognormal(0, 0.35))
    pixels = gradients + amplitude * _texture(seed)[y : y + SIDE, x : x + SIDE]
    picture = np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    jpeg: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(picture), quality=JPEG_QUALITY, colorsubsampling="420"
    )
    return jpeg


def draw_text(item: int, *, seed: int) -> str:
    """Text of one item."""
    rng = np.random.default_rng((seed, 1, item))
    num_words = int(rng.integers(30, 61))
    words, cumulative = _words()
    text = [words[rank] for rank in np.searchsorted(cumulative, rng.random(num_words))]
    for place in rng.integers(0, num_words, 2 + int(rng.random() < 0.5)):
        text[place] = f"{text[place]} {rng.integers(1_000, 10_000)}"
    return " ".join(text)


def draw_interactions(config: WorkloadConfig) -> pa.Table:
    """The log in order of time: items by Zipf's law, users evenly."""
    rng = np.random.default_rng((config.seed, 2))
    count = config.num_interactions
    share = np.arange(1, config.num_items + 1) ** -ZIPF
    ranks = np.searchsorted(np.cumsum(share / share.sum()), rng.random(count))
    items = rng.permutation(config.num_items)[np.minimum(ranks, config.num_items - 1)]
    users = rng.integers(0, max(count // config.interactions_per_user, 1), count)
    times = FIRST_TIME_MS + np.sort(rng.integers(0, LOG_DAYS * 86_400_000, count))
    return pa.table({"user_id": users, "item_id": items, "time": times})


def _write_items(workload: Workload, config: WorkloadConfig) -> None:
    schema = pa.schema(
        [("item_id", pa.int64()), ("image", pa.binary()), ("text", pa.string())],
    )
    lengths: dict[str, list[int]] = {"images": [], "texts": []}
    with (
        pq.ParquetWriter(workload.items, schema, compression="none", use_dictionary=False) as table,
        workload.column("images").open("wb") as images,
        workload.column("texts").open("wb") as texts,
    ):
        for start in range(0, config.num_items, ROWS_AT_ONCE):
            rows = range(start, min(start + ROWS_AT_ONCE, config.num_items))
            drawn = {
                "item_id": list(rows),
                "image": [draw_picture(item, seed=config.seed) for item in rows],
                "text": [draw_text(item, seed=config.seed) for item in rows],
            }
            table.write_table(pa.table(drawn, schema=schema))
            images.writelines(drawn["image"])
            texts.writelines(text.encode() for text in drawn["text"])
            lengths["images"] += map(len, drawn["image"])
            lengths["texts"] += (len(text.encode()) for text in drawn["text"])
    for name, sizes in lengths.items():
        np.save(workload.offsets(name), np.cumsum([0, *sizes], dtype=np.int64))


@functools.cache
def _ramps() -> NDArray[np.float32]:
    """Linear interpolation from `KNOTS` values to `SIDE` pixels, [SIDE, KNOTS]."""
    place = np.linspace(0, KNOTS - 1, SIDE)[:, None]
    return np.maximum(0, 1 - np.abs(place - np.arange(KNOTS))).astype(np.float32)


@functools.cache
def _texture(seed: int) -> NDArray[np.float32]:
    """Noise of amplitude 1/f, of variance 1."""
    noise = np.random.default_rng((seed, 3)).standard_normal((TEXTURE_SIDE, TEXTURE_SIDE))
    y = np.fft.fftfreq(TEXTURE_SIDE)[:, None]
    frequency = np.hypot(y, np.fft.rfftfreq(TEXTURE_SIDE))
    frequency[0, 0] = np.inf
    plane = np.fft.irfft2(np.fft.rfft2(noise) / frequency, noise.shape)
    return (plane / plane.std()).astype(np.float32)


@functools.cache
def _words() -> tuple[list[str], NDArray[np.float64]]:
    """Whole words of CLIP's vocabulary, frequent ones first, and their cumulative Zipf shares."""
    # Found without importing open_clip, which takes seconds.
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    vocabulary = Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    with gzip.open(vocabulary, "rt", encoding="utf-8") as file:
        merges = ["".join(line.split()) for line in file.read().splitlines()[1:48_895]]
    ends = [merge.removesuffix("</w>") for merge in merges if merge.endswith("</w>")]
    words = [word for word in ends if len(word) > 2 and word.isascii() and word.isalpha()]
    words = words[:NUM_WORDS]
    share = np.arange(1, len(words) + 1) ** -ZIPF
    return words, np.cumsum(share / share.sum())


def main() -> None:
    """Write the tables and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out_dir", type=Path, default=Path("build/bench"))
    for field in dataclasses.fields(WorkloadConfig):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    options = vars(parser.parse_args())
    out_dir = options.pop("out_dir")
    workload = prepare_workload(out_dir, WorkloadConfig(**options))
    sizes = {
        f"mean_{name}_bytes": round(float(np.diff(np.load(workload.offsets(name))).mean()), 1)
        for name in ("images", "texts")
    }
    print(json.dumps({"dir": str(workload.dir), **sizes}))


if __name__ == "__main__":
    main()
