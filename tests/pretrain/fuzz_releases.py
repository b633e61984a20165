"""Mutated released folders, loaded in a process of their own: a crash is seen as one.

`python fuzz_releases.py NUM_CASES FOLDER`, where `FOLDER/intact` is a release, prints one JSON
object: outcomes, peak memory. A case that raises anything but a clear error, runs code of the
folder, takes over a minute, or loads a damaged folder as if it were intact, ends the process.
"""

import contextlib
import faulthandler
import io
import json
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_prep.checksums import file_checksum
from data_prep.records import ItemRecord
from pretrain import load_released
from pretrain.release_config import signed
from tests.data_prep.fuzz_cases import mutate
from tests.json_mutations import altered

SECONDS_A_CASE = 60
CLEAR = (ValueError, OSError)
TRAP = "trap.txt"


def records() -> list[ItemRecord]:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)).save(buffer, "JPEG")
    return [
        ItemRecord(image=buffer.getvalue(), texts={"title": "a red shoe"}, vectors={}),
        ItemRecord(image=None, texts={"title": "blue"}, vectors={}),
    ]


class Trap:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return Path.write_text, (Path(TRAP), "code of the folder was run")  # type: ignore[return-value]


CODE = f"from pathlib import Path\nPath({TRAP!r}).write_text('run')\n"


def sign(folder: Path, document: dict[str, object]) -> None:
    """Make checksums fit, as somebody would who means harm."""
    files = document.get("files")
    if isinstance(files, dict):
        for name in files:
            path = folder / str(name)
            if path.is_file():
                files[name] = file_checksum(path)
    (folder / "config.json").write_text(signed(document))


def damage(folder: Path, rng: random.Random) -> str:
    """Mutate a folder; what was done to it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    one, other = rng.sample(files, 2)
    document = json.loads((folder / "config.json").read_text())
    match kind := rng.choice(["bytes", "cut", "gone", "swap", "json", "json", "signed", "hostile"]):
        case "bytes":
            one.write_bytes(mutate(one.read_bytes(), rng))
        case "cut":
            payload = one.read_bytes()
            one.write_bytes(payload[: rng.randrange(len(payload))])
        case "gone":
            one.unlink()
        case "swap":
            first, second = one.read_bytes(), other.read_bytes()
            one.write_bytes(second)
            other.write_bytes(first if rng.random() < 0.5 else second)
        case "json":
            sign(folder, altered(document, rng))
        case "signed":
            if one.name != "config.json":
                one.write_bytes(mutate(one.read_bytes(), rng))
            sign(folder, document)
        case "hostile":
            make_hostile(folder, document, rng)
    return kind


def make_hostile(folder: Path, document: dict, rng: random.Random) -> None:
    """Whatever would run code in a loader that trusts the folder."""
    where = {"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    for place in (folder, folder / "tokenizer"):
        (place / "evil.py").write_text(CODE)
    match rng.randrange(4):
        case 0:
            payload = pickle.dumps(Trap())
            (folder / rng.choice(["model.safetensors", "id_map.parquet"])).write_bytes(payload)
        case 1:
            config = document["architectures"]["text"]["transformers_config"]
            config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
        case 2:
            config = document["architectures"]["text"]["transformers_config"]
            config[rng.choice(["attn_implementation", "_attn_implementation"])] = "some/kernel"
        case 3:
            path = folder / "tokenizer" / "tokenizer_config.json"
            about = json.loads(path.read_text()) | {"auto_map": where, "tokenizer_class": "Evil"}
            path.write_text(json.dumps(about))
    sign(folder, document)


def run(num_cases: int, folder: Path) -> dict[str, object]:
    os.chdir(folder)
    torch.set_num_threads(1)
    expected = load_released("intact").encode_items(records())
    outcomes: Counter[str] = Counter()
    for number in range(num_cases):
        shutil.rmtree("damaged", ignore_errors=True)
        shutil.copytree("intact", "damaged")
        rng = random.Random(f"release-{number}")
        kind = damage(Path("damaged"), rng)
        signal.alarm(SECONDS_A_CASE)
        try:
            outcomes[f"{kind}: {outcome(kind, expected)}"] += 1
        except BaseException:
            print(f"case {number}: {kind}", file=sys.stderr)
            raise
        if Path(TRAP).exists():
            raise SystemExit(f"case {number}: {kind}: code of the folder was run")
    signal.alarm(0)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"outcomes": dict(sorted(outcomes.items())), "peak_mb": round(peak_mb)}


def outcome(kind: str, expected: torch.Tensor) -> str:
    """What loading gives; a clear error is shown to be one."""
    try:
        found = load_released("damaged").encode_items(records())
    except CLEAR as error:
        return "refused" if len(str(error)) > 20 else "refused without a word"
    if kind in ("bytes", "cut", "gone", "swap"):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        return "as intact"
    return "read"


if __name__ == "__main__":
    faulthandler.enable()
    logging.disable(logging.CRITICAL)
    sys.stdin.close()
    with contextlib.redirect_stdout(io.StringIO()):
        found = run(int(sys.argv[1]), Path(sys.argv[2]).resolve())
    print(json.dumps(found))
