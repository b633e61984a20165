"""An environment for each peer: it sees our packages, and its own pins come before them.

mosaicml-streaming pins an old huggingface_hub and with it an old transformers, so it cannot live
in ours. torch and whatever else a peer shares with us is not installed again.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import sysconfig
from pathlib import Path

log = logging.getLogger(__name__)

REQUIREMENTS = {
    "mosaic": "mosaicml-streaming==0.13.0",
    "litdata": "litdata==0.2.76",
    "fuxictr": "fuxictr==2.3.10",
}
"""The newest of each when the figures were taken."""


def peer_python(peer: str, *, bench_dir: Path) -> Path:
    """The Python that a peer runs with; its environment is made when it is not there."""
    if peer not in REQUIREMENTS:
        return Path(sys.executable)
    folder = (bench_dir / f"env-{peer}").resolve()
    python = folder / "bin" / "python"
    finished = folder / "installed"
    wanted = f"{REQUIREMENTS[peer]}\n"
    if finished.is_file() and finished.read_text() == wanted:
        return python
    log.info("%s: installing %s", folder, REQUIREMENTS[peer])
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    own = _run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    # Lines of a .pth file go to the end of sys.path: what the peer pins is found before ours.
    Path(own.strip(), "triptych-environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _run(str(python), "-m", "pip", "install", "--disable-pip-version-check", REQUIREMENTS[peer])
    finished.write_text(wanted)
    return python


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}; "
            "make the package index reachable, or leave the peer out with --peers"
        )
    return done.stdout
