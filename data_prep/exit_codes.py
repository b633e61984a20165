"""Exit codes of every command, so that scripts can tell how it ended."""

DONE = 0
FAILED = 1
USER_ERROR = 2
STOPPED = 75
HUNG = 76
NOT_FINITE = 77
SUPERSEDED = 78

MEANINGS = {
    DONE: "done",
    FAILED: "failed, with a traceback; of data_prep verify: damage was found",
    USER_ERROR: "settings or data are wrong, one line on stderr says what to do",
    STOPPED: "pretrain fit: asked to stop, all saved: the same command goes on",
    HUNG: "pretrain fit: nothing done for run.watch.hang_minutes, see stacks-rank-*.txt",
    NOT_FINITE: "of pretrain fit a loss or gradient, of finetune scores, that are not finite",
    SUPERSEDED: "pretrain fit: another life of this run has begun, which goes on",
}


def explained(*codes: int) -> str:
    """For the end of a parser's `--help`, which breaks its lines itself."""
    return f"Exit codes: {'; '.join(f'{code}: {MEANINGS[code]}' for code in codes)}."
