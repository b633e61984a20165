"""One way of reading shuffled batches of pictures and token ids, measured: a case of `load_items`.

    python tests/bench/load_cases.py webdataset --workload DIR --source DIR --tokenizer FILE

A batch is uint8 pictures [256, 224, 224, 3] (ours [256, 3, 224, 224]; open_clip's recipe gives
normalised float32) and int64 token ids [256, 77]. Every container uses simplejpeg and the same Rust
tokenizer; ours has its tokens from shard time. Runs in the peers' environments.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from measured_loop import MeasuredLoop
from numpy.typing import NDArray

BATCH = 256
LARGE_BATCH = 4_096
WARM_BATCHES, BATCHES = 3, 16
WARM_LARGE_BATCHES, LARGE_BATCHES = 1, 2
SHUFFLE_BUFFER = 1_000
SEED = 0


@dataclass(frozen=True, kw_only=True)
class LoadCase:
    """Where a case reads from."""

    workload: Path
    source: Path
    """The container that the case reads."""
    tokenizer: Path


def measure_batches(
    batches: Iterator[Any], *, num_items: int, versions: tuple[str, ...] = ()
) -> None:
    """A few batches to warm up, then the measured ones; of a small workload fewer."""
    # One batch less than there are: some loaders drop what their buffers hold at the end.
    count = num_items // BATCH - 1
    warm = min(WARM_BATCHES, count // 3)
    measured = min(BATCHES, count - warm)
    for _ in range(warm):
        next(batches)
    with MeasuredLoop() as loop:
        for _ in range(measured):
            next(batches)
    loop.report(samples=measured * BATCH, versions=versions)


class Decoder:
    """JPEG bytes and a text → pixels and token ids, for the containers that leave it to us."""

    def __init__(self, case: LoadCase) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(case.tokenizer))

    def __call__(self, jpg: bytes, txt: str) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.from_numpy(simplejpeg.decode_jpeg(jpg, "RGB"))
        return pixels, torch.tensor(self.tokenizer.encode(txt).ids)


def measure_decode_floor(case: LoadCase, *, num_items: int) -> None:
    """simplejpeg into one reused buffer, from bytes in memory, and nothing else."""
    from mapped_items import MappedItems
    from workload import Workload

    images = MappedItems(Workload(case.workload)).images
    order = np.random.default_rng(SEED).permutation(len(images)).tolist()
    payloads = [bytes(images[row]) for row in order[: (WARM_BATCHES + BATCHES) * BATCH]]
    buffer = np.empty((224, 224, 3), np.uint8)

    def batches() -> Iterator[None]:
        for start in range(0, len(payloads), BATCH):
            for payload in payloads[start : start + BATCH]:
                simplejpeg.decode_jpeg(payload, "RGB", buffer=buffer)
            yield

    measure_batches(batches(), num_items=num_items, versions=("simplejpeg",))


def measure_webdataset(case: LoadCase, *, num_items: int) -> None:
    """webdataset's pipeline, shuffling bytes before it decodes them."""
    import webdataset

    decode = Decoder(case)
    shards = sorted(str(path) for path in case.source.glob("*.tar"))
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER)
        .map(lambda sample: decode(sample["jpg"], sample["txt"].decode()))
        .batched(BATCH, partial=False)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=0)
    measure_batches(iter(loader), num_items=num_items, versions=("webdataset",))


def measure_open_clip(case: LoadCase, *, num_items: int) -> None:
    """The pipeline of open_clip's training script: PIL, its transform, its tokenizer."""
    import open_clip
    import webdataset

    transform = open_clip.image_transform(224, is_train=False)
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    shards = sorted(str(path) for path in case.source.glob("*.tar"))
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER)
        .decode("pilrgb")
        .rename(image="jpg;png;jpeg;webp", text="txt")
        .map_dict(image=transform, text=lambda text: tokenize(text)[0])
        .to_tuple("image", "text")
        .batched(BATCH, partial=False)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, shuffle=False, num_workers=0)
    measure_batches(iter(loader), num_items=num_items, versions=("open_clip_torch",))


def measure_litdata(case: LoadCase, *, num_items: int) -> None:
    """litdata's StreamingDataset and StreamingDataLoader."""
    from litdata import StreamingDataLoader, StreamingDataset

    decode = Decoder(case)

    class Pictures(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: object) -> tuple[torch.Tensor, torch.Tensor]:
            sample = super().__getitem__(index)
            return decode(sample["jpg"], sample["txt"])

    dataset = Pictures(str(case.source), shuffle=True, drop_last=True, seed=SEED)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)
    measure_batches(iter(loader), num_items=num_items, versions=("litdata",))


def measure_mosaic(case: LoadCase, *, num_items: int) -> None:
    """mosaicml-streaming's StreamingDataset in a DataLoader."""
    from streaming import StreamingDataset

    decode = Decoder(case)

    class Pictures(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            sample = super().__getitem__(index)
            return decode(sample["jpg"], sample["txt"])

    dataset = Pictures(local=str(case.source), shuffle=True, batch_size=BATCH, shuffle_seed=SEED)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=0)
    measure_batches(iter(loader), num_items=num_items, versions=("mosaicml-streaming",))


def measure_ours(case: LoadCase, *, num_items: int) -> None:
    """`ItemLoader` on distinct rows, in the order that a training step asks for them."""
    loader = _item_loader(case)
    order = np.random.default_rng(SEED).permutation(num_items)
    starts = range(0, num_items, BATCH)
    batches = (loader.load(np.unique(order[start : start + BATCH])) for start in starts)
    measure_batches(batches, num_items=num_items, versions=("simplejpeg",))


def measure_references(case: LoadCase, *, distinct: bool) -> None:
    """Batches of 4,096 events of the log: each item once, or each time it is named."""
    import pyarrow.parquet as pq
    from workload import Workload

    loader = _item_loader(case)
    log = pq.read_table(Workload(case.workload).interactions, columns=["item_id"])["item_id"]
    rng = np.random.default_rng(SEED)
    size = (WARM_LARGE_BATCHES + LARGE_BATCHES, LARGE_BATCH)
    drawn = rng.choice(log.to_numpy(), size=size, replace=False)

    def load(references: NDArray[np.int64]) -> int:
        rows = np.unique(references, return_inverse=True)[0] if distinct else references
        return len(loader.load(rows).rows_n)

    for references in drawn[:WARM_LARGE_BATCHES]:
        load(references)
    with MeasuredLoop() as loop:
        num_loaded = sum(load(references) for references in drawn[WARM_LARGE_BATCHES:])
    loop.report(samples=LARGE_BATCHES * LARGE_BATCH, loaded=num_loaded)


def _item_loader(case: LoadCase) -> Any:  # noqa: ANN401 (ours is not imported by the peers)
    from data_prep.dataset import open_dataset
    from pretrain.item_loader import ItemLoader, preprocessors_of
    from pretrain.towers import TowerConfig

    dataset = open_dataset(case.source)
    tower = TowerConfig(library="open_clip", name="ViT-B-32", image_size=224, max_tokens=77)
    preprocessors = preprocessors_of(dataset, {"image": tower, "text": tower}, threads=1)
    return ItemLoader(dataset, preprocessors=preprocessors, cache_mb=0)


CASES: dict[str, Callable[..., None]] = {
    "decode_floor": measure_decode_floor,
    "webdataset": measure_webdataset,
    "litdata": measure_litdata,
    "mosaic": measure_mosaic,
    "open_clip": measure_open_clip,
    "ours": measure_ours,
}


def main() -> None:
    """Run one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=[*CASES, "ours_distinct", "ours_repeated"])
    for name in ("workload", "source", "tokenizer"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    case = LoadCase(workload=args.workload, source=args.source, tokenizer=args.tokenizer)
    torch.set_num_threads(1)
    if args.case in CASES:
        num_items = len(np.load(case.workload / "images.offsets.npy")) - 1
        CASES[args.case](case, num_items=num_items)
    else:
        measure_references(case, distinct=args.case == "ours_distinct")


if __name__ == "__main__":
    main()
