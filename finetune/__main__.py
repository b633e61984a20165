"""`python -m finetune {fit,ladder,predict,report}`."""

import sys

from finetune.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
