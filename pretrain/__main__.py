"""The way in: `python -m pretrain`."""

import sys

from pretrain import stop_flag

if __name__ == "__main__":
    if sys.argv[1:2] in (["fit"], ["check_ranks"]):
        stop_flag.listen()  # the imports take half a minute, and a signal in them must not kill us
    from pretrain.cli import main

    main()
