"""The tables that this software keeps in the bucket: Parquet, zstd, with checksums.

Each page has one, which any reader may check. A damaged page header may say that there is none, so the file's metadata
hold a SHA-256 of all that stands before them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

_SEAL = b"sha256"
"""Key of the metadata: the number of bytes before them, and the SHA-256 (hex) of these."""

TYPE = "application/vnd.apache.parquet"
"""Content type of these objects."""


def to_bytes(table: pa.Table) -> bytes:
    """The content of a file."""
    out = io.BytesIO()
    with pq.ParquetWriter(out, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_SEAL: _sealed(out.getvalue())})
    return out.getvalue()


def _sealed(pages: bytes | memoryview) -> bytes:
    return f"{len(pages)} {hashlib.sha256(pages).hexdigest()}".encode()


def from_bytes(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table that a file holds, or some columns of it.

    Raises:
        ValueError: It is damaged, or lacks one of them. The message is a clause that says how.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        seal = (file.metadata.metadata or {}).get(_SEAL)  # files of earlier versions have none
        if seal and _sealed(memoryview(data)[: int(seal.partition(b" ")[0])]) != seal:
            raise ValueError("its bytes are not those that were written")
        if absent := set(columns or ()) - set(file.schema_arrow.names):
            raise ValueError(f"it has no column {', '.join(sorted(absent))}")
        table = file.read(None if columns is None else list(columns))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from None
    kept = {name: value for name, value in (table.schema.metadata or {}).items() if name != _SEAL}
    return table.replace_schema_metadata(kept or None)
