"""Commands of `python -m finetune`, one after the other, in one pair of processes.

torchrun --nproc_per_node 2 tests/finetune/two_ranks.py COMMANDS.json

The file holds a list of argument lists. Each rank leaves beside it what every command gave: its
exit code, and its last line on stderr.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from finetune.cli import main

if __name__ == "__main__":
    commands = Path(sys.argv[1])
    found = []
    for words in json.loads(commands.read_text()):
        heard = io.StringIO()
        with contextlib.redirect_stderr(heard):
            code = main(words)
        print(words[-1], code, heard.getvalue()[-2000:], flush=True)
        found.append([code, heard.getvalue().strip().rpartition("\n")[2]])
    commands.with_name(f"found-{os.environ['RANK']}.json").write_text(json.dumps(found))
