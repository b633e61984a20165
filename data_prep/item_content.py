"""One item's raw cells to the record that is stored, with the causes of what was set aside."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import tee
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.checksums import content_hash
from data_prep.columns import ItemColumns
from data_prep.media import Cell, Found, MediaReader
from data_prep.media_losses import MediaCount
from data_prep.pictures import Picture, prepare_picture
from data_prep.records import ItemRecord
from data_prep.settings import FetchConfig, PictureConfig, SoundConfig
from data_prep.sounds import Sound, prepare_sound

Row = dict[str, Any]


@dataclass
class Prepared:
    """An item as it is stored, and what is known of it beside."""

    record: ItemRecord
    causes: list[str]
    has: dict[str, bool]
    hashes: dict[str, int | None]

    def facts(self) -> dict[str, Any]:
        """One row of what finish.py joins into items.parquet."""
        return {
            **{f"has_{name}": value for name, value in self.has.items()},
            **self.hashes,
            "cause": ", ".join(self.causes) or None,
        }


@dataclass(frozen=True, kw_only=True)
class ContentReader:
    """Reads, checks and converts the content of items; it travels to worker processes."""

    items: ItemColumns
    pictures: PictureConfig
    sounds: SoundConfig
    fetch: FetchConfig
    text_fields: tuple[str, ...]
    vector_widths: dict[str, int] = field(default_factory=dict)

    def read_all(
        self, rows: Iterable[Row], counts: dict[str, MediaCount]
    ) -> Iterator[tuple[Row, Prepared]]:
        """Every row with its item, in order; files and URLs are read ahead.

        `counts` is filled with the cells of every media column that there is.
        """
        kept, *copies = tee(rows, 4)
        streams = zip(
            kept,
            self._payloads(copies[0], "image", counts),
            self._frames(copies[1], counts),
            self._payloads(copies[2], "sound", counts),
            strict=True,
        )
        for row, image, frames, sound in streams:
            yield row, self._prepare(row, image=image, frames=frames, sound=sound)

    def _read(
        self, cells: Iterable[Cell], media: str, counts: dict[str, MediaCount]
    ) -> Iterator[Found]:
        folder: str | None = getattr(self.items, f"{media}_dir")
        reader = MediaReader(folder, setting=f"items.{media}_dir", fetch=self.fetch)
        return reader.read_all(cells, seen=counts.setdefault(media, MediaCount()).add)

    def _payloads(
        self, rows: Iterable[Row], media: str, counts: dict[str, MediaCount]
    ) -> Iterator[Found]:
        if getattr(self.items, media) is None:
            return (None for _ in rows)
        return self._read((row[media] for row in rows), media, counts)

    def _frames(self, rows: Iterable[Row], counts: dict[str, MediaCount]) -> Iterator[list[Found]]:
        """The chosen frames of every row."""
        if self.items.frames is None:
            yield from ([] for _ in rows)
            return
        chosen, copy = tee(self._choose(row["frames"]) for row in rows)
        payloads = self._read((cell for cells in copy for cell in cells), "frames", counts)
        for cells in chosen:
            yield [next(payloads) for _ in cells]

    def _choose(self, cells: list[Cell] | None) -> list[Cell]:
        """At most `max_frames` of an item's frames, evenly spread."""
        cells = cells or []
        count = min(len(cells), self.pictures.max_frames)
        return [cells[i] for i in np.linspace(0, len(cells) - 1, count).round().astype(int)]

    def _prepare(
        self,
        row: Row,
        *,
        image: Found,
        frames: list[Found],
        sound: Found,
    ) -> Prepared:
        causes: list[str] = []
        picture = self._picture(image, causes, of="pictures")
        kept = [self._picture(frame, causes, of="frames") for frame in frames]
        jpegs = tuple(frame.jpeg for frame in kept if frame is not None)
        clip = self._sound(sound, causes)
        texts = {
            name: text
            for name in self.text_fields
            if (text := row[f"text_{name}"]) is not None and text.strip()
        }
        vectors = self._vectors(row, causes)
        record = ItemRecord(
            image=picture.jpeg if picture else None,
            frames=jpegs,
            sound=clip.payload if clip else None,
            sound_suffix=clip.suffix if clip else "",
            texts=texts,
            vectors=vectors,
        )
        stored = {"image": record.image, "frames": b"".join(jpegs), "sound": record.sound}
        stored["text"] = "\0".join(text for pair in texts.items() for text in pair).encode()
        stored |= {name: vectors[name].tobytes() for name in vectors}
        hashes = {name: content_hash(payload) for name, payload in stored.items() if payload}
        columns = {f"hash_{name}": hashes.get(name) for name in self.modalities}
        if self.items.image is not None:
            columns["phash_image"] = picture.perceptual_hash if picture else None
        return Prepared(
            record, causes, has={name: name in hashes for name in self.modalities}, hashes=columns
        )

    @property
    def modalities(self) -> list[str]:
        """What the raw tables were said to hold, and `image` and `text` in any case."""
        media = [name for name in ("frames", "sound") if getattr(self.items, name) is not None]
        return ["image", *media, "text", *self.vector_widths]

    def _picture(self, payload: Found, causes: list[str], *, of: str) -> Picture | None:
        found = prepare_picture(payload, self.pictures) if isinstance(payload, bytes) else payload
        if isinstance(found, str):
            causes.append(f"{of}/{found}")
            return None
        return found

    def _sound(self, payload: Found, causes: list[str]) -> Sound | None:
        found = prepare_sound(payload, self.sounds) if isinstance(payload, bytes) else payload
        if isinstance(found, str):
            causes.append(f"sounds/{found}")
            return None
        return found

    def _vectors(self, row: Row, causes: list[str]) -> dict[str, NDArray[np.float32]]:
        vectors: dict[str, NDArray[np.float32]] = {}
        for name, width in self.vector_widths.items():
            if (numbers := row[f"vector_{name}"]) is None:
                continue
            vector = np.array(numbers, dtype=np.float32)
            if len(vector) != width:
                causes.append(f"vectors/{name}_of_another_width")
            elif not np.isfinite(vector).all():
                causes.append(f"vectors/{name}_not_finite")
            else:
                vectors[name] = vector
        return vectors
