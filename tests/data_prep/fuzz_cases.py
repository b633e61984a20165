"""Mutated inputs of data_prep, in a process of their own: a crash is seen as one.

`python fuzz_cases.py KIND NUM_CASES FOLDER` prints one JSON object: outcomes by cause, peak memory.
A case that raises anything but a clear error, or takes over a minute, ends the process.
"""

import contextlib
import faulthandler
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.__main__ import main
from data_prep.dataset import open_dataset
from data_prep.pictures import Picture, prepare_picture
from data_prep.settings import PictureConfig
from data_prep.verify import find_damage
from tests.json_mutations import altered

SECONDS_A_CASE = 60
CLEAR = (ValueError, OSError)

CONFIG = """\
name: fuzz
dataset_dir: dataset
interactions:
  path: raw/interactions.parquet
items:
  path: raw/items.parquet
  image: image
  texts: [title, description]
  arrival: arrival
  features: {category: categorical, price: numeric}
users: {path: raw/users.parquet, features: {age_group: categorical}}
impressions: {path: raw/impressions.parquet, label: click}
split: {valid_quantile: 0.8, test_quantile: 0.9}
filter: {duplicates: keep_exact_once, min_user_events: 1}
pictures: {short_side: 48, max_megapixels: 2.5}
tokens: {tokenizer: open_clip, max_tokens: 16}
items_per_shard: 16
memory_limit: 1GB
"""


def mutate(payload: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, a piece cut out, repeated or zeroed, or the end cut off."""
    changed = bytearray(payload)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(changed) + 1)
        length = rng.choice([1, 4, 1 + len(changed) // 64, 1 + len(changed) // 16])
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at : at + length] = rng.randbytes(length)
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length]
            case 4:
                changed[at : at + length] = bytes(len(changed[at : at + length]))
            case 5:
                del changed[at:]
    return bytes(changed)


def retype(text: str, rng: random.Random) -> str:
    """Slips of the finger: a character or a value replaced, or a line left out."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    match rng.randrange(3):
        case 0:
            place = rng.randrange(len(lines[at]))
            slip = rng.choice("0123456789.-_:,[]{}'\" aeiounull")
            lines[at] = lines[at][:place] + slip + lines[at][place + 1 :]
        case 1:
            key, colon, _ = lines[at].partition(": ")
            values = ["-1", "0", "1e9", "nan", "null", "true", "[]", "{}", "x", "2020-01-01", "''"]
            lines[at] = key + colon + rng.choice(values)
        case 2:
            del lines[at]
    return "\n".join(lines)


def pictures() -> list[bytes]:
    """One picture in many formats."""
    coarse = np.random.default_rng(0).integers(0, 255, (9, 9, 4), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((90, 70))
    formats = [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGBA")]
    formats += [("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("PPM", "RGB"), ("AVIF", "RGB")]
    payloads = []
    for name, mode in formats:
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, name)
        payloads.append(buffer.getvalue())
    return payloads


def picture_case(folder: Path) -> Callable[[random.Random], str]:
    """A mutated picture is a cause, or a JPEG that decodes."""
    originals = pictures()

    def case(rng: random.Random) -> str:
        found = prepare_picture(mutate(rng.choice(originals), rng), PictureConfig(short_side=48))
        if not isinstance(found, Picture):
            return found
        Image.open(io.BytesIO(found.jpeg)).load()
        return "stored"

    return case


def dataset_case(folder: Path) -> Callable[[random.Random], str]:
    """A file of a dataset, mutated: `verify` names it, and readers refuse or read it."""
    intact, damaged = folder / "intact", folder / "damaged"
    files = sorted(path.relative_to(intact) for path in intact.rglob("*") if path.is_file())

    def case(rng: random.Random) -> str:
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(intact, damaged)
        chosen = damaged / rng.choice(files)
        payload = chosen.read_bytes()
        changed = mutate(payload, rng)
        chosen.write_bytes(changed)
        listed = chosen.name != "manifest.json" and "quarantine" not in chosen.parts
        try:
            lines = list(find_damage(damaged))
        except CLEAR:
            lines = ["refused"]
        assert lines or not listed or payload == changed, f"{chosen} passed verify"
        return read_all(damaged)

    return case


def manifest_case(folder: Path) -> Callable[[random.Random], str]:
    """Values of a manifest altered: refused, or a dataset that is read to its end."""
    intact, damaged = folder / "intact", folder / "damaged"
    document = json.loads((intact / "manifest.json").read_text())
    shutil.copytree(intact, damaged)

    def case(rng: random.Random) -> str:
        (damaged / "manifest.json").write_text(json.dumps(altered(document, rng)))
        with contextlib.suppress(*CLEAR):
            list(find_damage(damaged))
        return read_all(damaged)

    return case


def read_all(folder: Path) -> str:
    """Every reader over all of a dataset."""
    with contextlib.suppress(*CLEAR):
        dataset = open_dataset(folder)
        dataset.events()
        content = dataset.content()
        for row in range(len(content)):
            content.read(row)
            content.tokens([row], length=16, padding=0)
        dataset.impressions("test")
        return "read"
    return "refused"


def table_case(folder: Path) -> Callable[[random.Random], str]:
    """A mutated raw table: a dataset or one clear error."""
    raw = folder / "raw"
    names = ["interactions", "items", "users", "impressions"]
    originals = {name: (raw / f"{name}.parquet").read_bytes() for name in names}

    def case(rng: random.Random) -> str:
        name = rng.choice(names)
        shutil.rmtree("dataset", ignore_errors=True)
        (raw / f"{name}.parquet").write_bytes(mutate(originals[name], rng))
        code = main(["shard", "--config", "shard.yaml"])
        (raw / f"{name}.parquet").write_bytes(originals[name])
        assert code in (0, 2), code
        return "dataset" if code == 0 else "refused"

    return case


def config_case(folder: Path) -> Callable[[random.Random], str]:
    """Mutated settings: a dataset or one clear error."""

    def case(rng: random.Random) -> str:
        if rng.random() < 0.3:
            text = mutate(CONFIG.encode(), rng).decode("utf-8", "replace")
        else:
            text = retype(CONFIG, rng)
        if any(mark in text for mark in (": /", ": ~", "..", ": '/", ': "/')):
            return "left out, as it may name files elsewhere"
        for left in Path.cwd().iterdir():
            if left.is_dir() and left.name not in ("raw", "intact", "damaged"):
                shutil.rmtree(left)
        Path("mutated.yaml").write_text(text)
        code = main(["shard", "--config", "mutated.yaml"])
        assert code in (0, 2), code
        return "dataset" if code == 0 else "refused"

    return case


KINDS = {
    "pictures": picture_case,
    "dataset": dataset_case,
    "manifests": manifest_case,
    "tables": table_case,
    "configs": config_case,
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What commands say goes nowhere."""
    logging.disable(logging.CRITICAL)
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def run(kind: str, num_cases: int, folder: Path) -> dict[str, object]:
    """Outcomes of the cases by cause."""
    os.chdir(folder)
    Path("shard.yaml").write_text(CONFIG)
    case = KINDS[kind](folder)
    outcomes: Counter[str] = Counter()
    for number in range(num_cases):
        signal.alarm(SECONDS_A_CASE)
        try:
            with quiet():
                outcomes[case(random.Random(f"{kind}-{number}"))] += 1
        except BaseException:
            print(f"case {number} of {kind}", file=sys.stderr)
            raise
    signal.alarm(0)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"kind": kind, "outcomes": dict(outcomes), "peak_mb": round(peak_mb)}


if __name__ == "__main__":
    faulthandler.enable()
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve())))
