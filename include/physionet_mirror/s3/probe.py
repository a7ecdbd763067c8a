"""What can this S3 do? Everything that a run relies on is tried with a few small objects, before anything is fetched."""

from __future__ import annotations

import hashlib
import logging
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from physionet_mirror.errors import DestinationError, DestinationUnavailable
from physionet_mirror.layout import STORE_CHECK
from physionet_mirror.s3 import replies
from physionet_mirror.s3.bucket import NO_ETAG, Bucket
from physionet_mirror.s3.capabilities import Capabilities

log = logging.getLogger(__name__)

_DATA = b"Written by the access check, and removed by it.\n"
_SHA256 = hashlib.sha256(_DATA).hexdigest()
_PLAIN, _COPY, _PARTS, _WRONG, _CLASS = (STORE_CHECK + name for name in ("plain", "copy", "parts", "wrong", "class"))
_TEXT = "text/plain"


def probe(bucket: Bucket, storage_class: str = "STANDARD") -> Capabilities:
    """Try it all, in about 12 requests; the bucket goes by the result from then on.

    The names are the same each time, so that a role that may not delete leaves five small objects behind and no more. Of two
    runs that try at once, one may remove what the other has just written: that is taken for a capability, not for a lack.

    Args:
        bucket: The destination, which is known to take objects.
        storage_class: The one that the run's files shall have.

    Raises:
        BucketRefused: It does not take this storage class, or nothing at all.
        DestinationUnavailable: S3 cannot say now.
    """
    bucket.can = Capabilities()
    bucket.put(_PLAIN, _DATA, content_type=_TEXT, sha256=_SHA256)  # from here on it is known whether with SHA-256
    there = bucket.head(_PLAIN)
    can = replace(bucket.can, keeps_sha256=there is None or there.sha256 == _SHA256)
    if can.sha256:
        can = replace(can, checks_sha256=bool(bucket.refusal_of(_WRONG, _DATA, ChecksumSHA256=_other("sha256"))))
    if can.wants_md5:
        can = replace(can, checks_md5=bool(bucket.refusal_of(_WRONG, _DATA, ContentMD5=_other("md5"))))
    bucket.can = can
    can = replace(
        can,
        conditions=_keeps_conditions(bucket),
        start_after=_works(lambda: all(entry.path > _PLAIN for entry in bucket.list(STORE_CHECK, start_after=_PLAIN))),
        multipart=_works(lambda: _uploads_in_parts(bucket)),
        keeps_storage_class=storage_class == "STANDARD" or _keeps_class(bucket, storage_class),
    )
    if there is not None:
        copies: list[Any] = []
        can = replace(can, copies=_works(lambda: _copies(bucket, there, copies)))
        first, again = (*copies, None, None)[:2]
        can = replace(
            can,
            copies_with_sha256=can.sha256 and first is not None and first.sha256 == _SHA256,
            copies_if_absent=bucket.can.copies_if_absent and len(copies) == 2 and again is None,
        )
    try:
        bucket.delete([_PLAIN, _COPY, _PARTS, _WRONG, _CLASS])
    except DestinationUnavailable:
        raise
    except DestinationError as error:
        log.info("%s: the access check's objects stay; nothing depends on them. %s", bucket.uri(STORE_CHECK), error)
        can = can.without("deletes")
    bucket.can = replace(can, deletes_many=bucket.can.deletes_many)
    return bucket.can


def _works(ask: Callable[[], bool]) -> bool:
    """Whether it does what it should; what S3 refuses does not work, and what is gone meanwhile says nothing."""
    try:
        return ask()
    except DestinationUnavailable:
        raise
    except DestinationError as error:
        log.info("Not taken by this S3: %s", error)
        return False
    except FileNotFoundError:
        return True


def _uploads_in_parts(bucket: Bucket) -> bool:
    bucket.upload_parts(_PARTS, [_DATA], content_type=_TEXT)
    return bucket.read(_PARTS) == _DATA


def _keeps_class(bucket: Bucket, storage_class: str) -> bool:
    bucket.put(_CLASS, _DATA, content_type=_TEXT, storage_class=storage_class)
    stored = bucket.head(_CLASS)
    return stored is None or stored.storage_class == storage_class


def _copies(bucket: Bucket, there: Any, copies: list[Any]) -> bool:
    copies.append(bucket.copy_from(bucket, there, _COPY, content_type=_TEXT))
    copies.append(bucket.copy_from(bucket, there, _COPY, content_type=_TEXT, replace=False))
    return True


def _keeps_conditions(bucket: Bucket) -> bool:
    """Whether a PUT is refused whose If-Match or If-None-Match does not hold."""
    conditions = {"IfMatch": NO_ETAG}, {"IfNoneMatch": "*"}
    return all(bucket.refusal_of(_PLAIN, _DATA, **condition) in replies.CONDITION for condition in conditions)


def _other(algorithm: str) -> str:
    return b64encode(hashlib.new(algorithm, b"other bytes", usedforsecurity=False).digest()).decode()
