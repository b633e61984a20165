"""The dataset folder's schema: file names, tar members, Arrow types, and how one item is encoded.

Everything that writes or reads a dataset folder takes its names from here, so that the format is
said once. numpy is imported where it is used, so that a command's --help starts fast.
"""

import io
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = "triptych-dataset"
SCHEMA_VERSION = 3

MANIFEST_FILE = "manifest.json"
ITEMS_FILE = "items.parquet"
USERS_FILE = "users.parquet"
REPORT_FILE = "report.html"
WORK_DIR = ".work"
QUARANTINE_DIR = "quarantine"

IMAGE_MEMBER = "jpg"
JSON_MEMBER = "json"
VECTOR_SUFFIX = ".npy"
FRAME_SUFFIX = ".jpg"
SOUND_PREFIX = "sound."

USER_BLOCK_USERS = 1024
"""Users in one sample of `users/*.tar`."""

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

FeatureType = Literal["numeric", "categorical", "multi"]
"""numeric: float64 column; categorical: string column; multi: list<string> column."""

LabelType = Literal["binary", "numeric"]
"""binary: int8 column of 0 and 1; numeric: float32 column."""
EXPOSURE_COLUMNS = ("position", "propensity", "treatment")
"""How an impression came about: int32, float32 and int8 columns, where the settings name them."""

RESERVED_ITEM_COLUMNS = (
    "item_row",
    "item_id",
    "has_image",
    "has_frames",
    "has_sound",
    "has_text",
    "hash_image",
    "hash_frames",
    "hash_sound",
    "hash_text",
    "phash_image",
    "train_count",
    "first_time",
)
RESERVED_USER_COLUMNS = ("user_row", "user_id")
RESERVED_CONTEXT_COLUMNS = (
    *("user_row", "item_row", "time", "label", "user_id", "item_id"),
    *("raw_time", "raw_label", "cause", "known_id"),
)


def item_key(item_row: int) -> str:
    """WebDataset key of an item."""
    return f"{item_row:010d}"


def block_key(block: int) -> str:
    """WebDataset key of a block of users."""
    return f"{block:08d}"


def item_tar(shard: int) -> str:
    """Path of an item tar inside the dataset folder."""
    return f"items/items-{shard:06d}.tar"


def item_index(shard: int) -> str:
    """Path of an item tar's sidecar index inside the dataset folder."""
    return f"items/items-{shard:06d}.index.arrow"


def token_file(shard: int) -> str:
    """Path of the token ids of an item tar's texts inside the dataset folder."""
    return f"items/items-{shard:06d}.tokens.arrow"


def user_tar(shard: int) -> str:
    """Path of a user tar inside the dataset folder."""
    return f"users/users-{shard:06d}.tar"


def user_index(shard: int) -> str:
    """Path of a user tar's sidecar index; its `item_row` counts blocks."""
    return f"users/users-{shard:06d}.index.arrow"


def impressions_file(split: Split) -> str:
    """Path of a split's impressions inside the dataset folder."""
    return f"ctr/{split}/part-00000.parquet"


def frame_member(number: int) -> str:
    """Tar member of one of several pictures."""
    return f"frame{number:02d}{FRAME_SUFFIX}"


def vector_member(name: str) -> str:
    """Tar member that holds the vector called `name`."""
    return name + VECTOR_SUFFIX


@dataclass(frozen=True)
class ItemRecord:
    """One item's content; whatever it lacks is absent, which is normal."""

    image: bytes | None = None
    """JPEG bytes."""
    frames: tuple[bytes, ...] = ()
    """JPEG bytes of several pictures, in their order."""
    sound: bytes | None = None
    """A clip as the file it came as."""
    sound_suffix: str = ""
    """Which kind of file: wav, flac, ogg or mp3."""
    texts: dict[str, str] = field(default_factory=dict)
    """Text field (title, description, …) to text; absent fields are left out."""
    vectors: "dict[str, NDArray[np.float32]]" = field(default_factory=dict)
    """Vector name to a vector of the width in the manifest."""


def encode_npy(array: "NDArray[np.generic]") -> bytes:
    """Serialise an array as a .npy file, never as a pickle."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def decode_npy(payload: bytes) -> "NDArray[np.generic]":
    """Read what `encode_npy` wrote.

    Raises:
        ValueError: no such array, or another size than its header says; nothing is allocated then.
    """
    import numpy as np

    file = io.BytesIO(payload)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"found version {version} of the format, expected (1, 0)")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, SyntaxError, TypeError, KeyError, EOFError) as error:
        raise ValueError(f"array of {len(payload)} bytes: cannot be read ({error})") from error
    expected = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or fortran or expected != len(payload) - file.tell():
        raise ValueError(
            f"array: found {len(payload) - file.tell()} bytes, expected {expected} of {dtype}"
        )
    return np.frombuffer(payload, dtype, offset=file.tell()).reshape(shape).copy()


def encode_item(record: ItemRecord, *, item_id: int | str) -> list[tuple[str, bytes]]:
    """Tar members of one item, in the order they are written."""
    members: list[tuple[str, bytes]] = []
    if record.image is not None:
        members.append((IMAGE_MEMBER, record.image))
    members.append((JSON_MEMBER, orjson.dumps({"item_id": item_id, "texts": record.texts})))
    for number, frame in enumerate(record.frames):
        members.append((frame_member(number), frame))
    if record.sound is not None:
        members.append((SOUND_PREFIX + record.sound_suffix, record.sound))
    for name, vector in record.vectors.items():
        members.append((vector_member(name), encode_npy(vector.astype("float32", copy=False))))
    return members


def decode_item(members: dict[str, bytes]) -> ItemRecord:
    """Read what `encode_item` wrote."""
    vectors = {
        name.removesuffix(VECTOR_SUFFIX): decode_npy(payload).astype("float32", copy=False)
        for name, payload in members.items()
        if name.endswith(VECTOR_SUFFIX)
    }
    texts = orjson.loads(members[JSON_MEMBER])["texts"] if JSON_MEMBER in members else {}
    sounds = [name for name in members if name.startswith(SOUND_PREFIX)]
    return ItemRecord(
        image=members.get(IMAGE_MEMBER),
        frames=tuple(members[name] for name in members if name.endswith(FRAME_SUFFIX)),
        sound=members[sounds[0]] if sounds else None,
        sound_suffix=sounds[0].removeprefix(SOUND_PREFIX) if sounds else "",
        texts=texts,
        vectors=vectors,
    )


def replace_file(path: Path, payload: bytes) -> None:
    """Write a file under a temporary name and rename it, so that a kill leaves no half a file."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to; it is renamed at the end, and nothing is left of a failure."""
    try:
        temporary = temporary_file(path)
        try:
            yield temporary
            put_in_place(temporary, path)
        finally:
            discard(temporary)
    except OSError as error:
        raise cannot_write(path, error) from error


def temporary_file(path: Path) -> Path:
    """A name in the folder `<path>.tmp` that no other writer of the file has, live or killed."""
    folder = _temporary_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / os.urandom(8).hex()


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a file that is whole, and remove what killed writers left of it.

    A second live writer loses its file by that, and has nothing to rename in the end: what the
    first wrote stays, as two runs of the same settings write the same bytes.
    """
    try:
        temporary.replace(path)
    except FileNotFoundError:
        if not path.is_file():
            raise
    remove_left_overs(path)


def remove_left_overs(path: Path) -> None:
    """Remove what writers of a file left that is whole by now."""
    shutil.rmtree(_temporary_folder(path), ignore_errors=True)


def discard(temporary: Path) -> None:
    """Remove a file that did not become whole; one that was renamed is not there."""
    temporary.unlink(missing_ok=True)
    with suppress(OSError):  # not there, or another writer's file lies in it
        temporary.parent.rmdir()


def cannot_write(path: Path, error: OSError) -> OSError:
    """What to raise where the disk is full, or a file may not be written."""
    return OSError(
        f"{path}: cannot be written ({error}); make room on its disk or correct its rights, "
        "then run again"
    )


def _temporary_folder(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
