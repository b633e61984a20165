"""Arrow IPC files of one batch, to be mapped into memory by their readers."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.records import replace_file

if TYPE_CHECKING:
    import pyarrow as pa


def write_arrow(path: Path, batch: "pa.RecordBatch") -> dict[str, Any]:
    """Write under a temporary name, then rename; returns the file's size and SHA-256."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    payload = sink.getvalue().to_pybytes()
    replace_file(path, payload)
    return {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}


def map_arrow(path: Path, schema: "pa.Schema | None", *, again: str) -> "pa.Table":
    """Map what `write_arrow` wrote; every column has one chunk.

    Raises:
        ValueError: damaged, or columns other than `schema`; `again` is the command that makes it.
    """
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: found no Arrow file ({error}); re-run {again}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}); re-run {again}") from error
    if schema is not None and not table.schema.equals(schema):
        raise ValueError(
            f"{path}: found columns {table.schema.names}, expected {schema.names}; re-run {again}"
        )
    try:
        table.validate(full=True)  # Arrow trusts a file's offsets, and would read beyond its end
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: damaged ({error}); re-run {again}") from error
    return table
