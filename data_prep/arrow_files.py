"""Arrow IPC files of one batch, to be mapped into memory by their readers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.checksums import checksum
from data_prep.records import replace_file

if TYPE_CHECKING:
    import pyarrow as pa


def write_arrow(path: Path, batch: "pa.RecordBatch") -> dict[str, Any]:
    """Write under a temporary name, then rename; returns the file's size and checksum."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    payload = sink.getvalue().to_pybytes()
    replace_file(path, payload)
    return {"bytes": len(payload), "xxh128": checksum(payload)}


def map_arrow(path: Path, schema: "pa.Schema | None", *, again: str) -> "pa.Table":
    """Map what `write_arrow` wrote; every column has one chunk.

    Raises:
        ValueError: damaged, or columns other than `schema`; `again` is the command that makes it.
    """
    import pyarrow as pa

    try:
        table = parse_arrow(pa.memory_map(str(path)), where=str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; re-run {again}") from error
    if schema is not None and not table.schema.equals(schema):
        raise ValueError(
            f"{path}: found columns {table.schema.names}, expected {schema.names}; re-run {again}"
        )
    return table


def parse_arrow(file: "pa.NativeFile", *, where: str) -> "pa.Table":
    """Read an Arrow IPC file, checked to its last offset.

    Raises:
        ValueError: damaged; the message begins with `where`.
    """
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(file).read_all()
        table.validate(full=True)  # Arrow trusts a file's offsets, and would read beyond its end
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise ValueError(f"{where}: cannot be read as an Arrow file ({error})") from error
    return table
