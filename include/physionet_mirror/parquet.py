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

_LENGTH, _SHA256 = b"hashed_bytes", b"sha256"

TYPE = "application/vnd.apache.parquet"
"""Content type of these objects."""


def to_bytes(table: pa.Table) -> bytes:
    """The content of a file."""
    out = io.BytesIO()
    with pq.ParquetWriter(out, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        pages = out.getvalue()
        digest = hashlib.sha256(pages).hexdigest()
        writer.add_key_value_metadata({_LENGTH: str(len(pages)), _SHA256: digest})
    return out.getvalue()


def from_bytes(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table that a file holds, or some columns of it.

    Raises:
        ValueError: It is damaged, or lacks one of them. The message is a clause that says how.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        told = file.metadata.metadata or {}
        if _SHA256 in told:  # files of earlier versions have none
            pages = memoryview(data)[: int(told[_LENGTH])]
            if hashlib.sha256(pages).hexdigest().encode() != told[_SHA256]:
                raise ValueError("its bytes are not those that were written")
        if absent := set(columns or ()) - set(file.schema_arrow.names):
            raise ValueError(f"it has no column {', '.join(sorted(absent))}")
        table = file.read(None if columns is None else list(columns))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from None
    kept = {name: value for name, value in (table.schema.metadata or {}).items() if name not in (_LENGTH, _SHA256)}
    return table.replace_schema_metadata(kept or None)
