"""The tables that this software keeps in the bucket: Parquet, zstd, with a checksum of each page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

TYPE = "application/vnd.apache.parquet"
"""Content type of these objects."""


def to_bytes(table: pa.Table) -> bytes:
    """The content of a file."""
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", write_page_checksum=True)
    return out.getvalue()


def from_bytes(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table that a file holds, or some columns of it.

    Raises:
        ValueError: It is damaged, or lacks one of them. The message is a clause that says how.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        if absent := set(columns or ()) - set(file.schema_arrow.names):
            raise ValueError(f"it has no column {', '.join(sorted(absent))}")
        table = file.read(None if columns is None else list(columns))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from None
    return table
