"""What an S3 can do. Amazon's can do everything; what another one lacks is done in another way.

Two things find out: the access check tries everything beforehand (``probe.py``), and a `Bucket` that nobody has told
learns from the answers. Being slow, or refusing us, is not a missing capability: only a server that says so itself is
asked otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from botocore.exceptions import ClientError

from physionet_mirror.s3.replies import code_of, status_of


@dataclass(frozen=True)
class Capabilities:
    """What one server takes; everything, until it says otherwise.

    Attributes:
        sha256: ``x-amz-checksum-sha256`` with a PUT and ``x-amz-checksum-mode`` with a HEAD. Without it, a PUT carries
            Content-MD5, and a verification reads each object back once.
        keeps_sha256: A HEAD gives the SHA-256 of a PUT back; else a verification reads each object back once.
        checks_sha256: A PUT whose bytes have another SHA-256 is refused; else it carries Content-MD5 as well.
        checks_md5: A PUT whose bytes have another Content-MD5 is refused.
        conditions: A PUT with If-Match or If-None-Match is made only where the condition holds.
        start_after: A LIST with StartAfter begins there.
        multipart: Multipart uploads, which files above 32 MiB need.
        copies: CopyObject within the bucket.
        copies_with_sha256: The answer to CopyObject has the copy's SHA-256; else each copy is read back once.
        copies_if_absent: CopyObject with If-None-Match; else a copy replaces what appeared meanwhile.
        keeps_storage_class: An object has the storage class that its PUT named.
        deletes: We may delete what we have written.
        deletes_many: DeleteObjects, up to 1,000 keys a request; else each object is deleted by itself.
    """

    sha256: bool = True
    keeps_sha256: bool = True
    checks_sha256: bool = True
    checks_md5: bool = True
    conditions: bool = True
    start_after: bool = True
    multipart: bool = True
    copies: bool = True
    copies_with_sha256: bool = True
    copies_if_absent: bool = True
    keeps_storage_class: bool = True
    deletes: bool = True
    deletes_many: bool = True

    def without(self, *names: str) -> Self:
        """The same but for these."""
        return replace(self, **dict.fromkeys(names, False))

    @property
    def wants_md5(self) -> bool:
        """Whether a PUT carries Content-MD5: where no SHA-256 has it refused if its bytes are wrong."""
        return not (self.sha256 and self.checks_sha256)

    @property
    def reads_back(self) -> bool:
        """Whether verify=checksum has to read objects back, because no HEAD gives their SHA-256."""
        return not (self.sha256 and self.keeps_sha256)

    def lacks(self) -> Sequence[str]:
        """What this S3 does not do and what is done or lost instead; sentences for log, plan and report."""
        said = []
        if not self.sha256:
            said.append(
                "this S3 takes no SHA-256 with a PUT or a HEAD: each PUT carries Content-MD5 instead, and verify=checksum reads "
                "each object back once"
            )
        elif not self.keeps_sha256:
            said.append("this S3 gives no SHA-256 back with a HEAD: verify=checksum reads each object back once")
        if self.sha256 and not self.checks_sha256:
            said.append(
                "this S3 does not compare a PUT's SHA-256 with its bytes: each PUT carries Content-MD5 as well"
                + (", and only verify=content proves what another tool has stored" if self.keeps_sha256 else "")
            )
        if self.wants_md5 and not self.checks_md5:
            said.append(
                "this S3 does not compare Content-MD5 with the bytes either: what arrives wrong is found by reading it back, "
                "not at the PUT"
            )
        if not self.conditions:
            said.append(
                "this S3 does not make a write depend on If-Match: of two runs that end at the same moment, one may undo the "
                "other's rows in index.parquet and in the memory of what is verified; no file is affected, and the next run "
                "adds the rows again"
            )
        if not self.start_after:
            said.append(
                "this S3 does not begin a LIST at StartAfter: the whole folder is listed, or each file asked for"
            )
        if not self.multipart:
            said.append("this S3 takes no multipart uploads: a file above 32 MiB cannot be stored")
        if not self.copies:
            said.append(
                "this S3 takes no copies: a file above 64 MiB comes over one connection, and again from its start"
            )
        if not self.keeps_storage_class:
            said.append("this S3 does not keep the storage class that was asked for")
        if not self.deletes:
            said.append("these credentials may not delete below _mirror/: what is out of date there is emptied instead")
        elif not self.deletes_many:
            said.append("this S3 takes no DeleteObjects: a clean-up deletes object by object")
        return said


def refuses_the_form(error: ClientError) -> bool:
    """Whether a server refuses the request as such (a header that it does not know, for instance), not its sender.

    Backblaze B2 answers 400 InvalidArgument to a checksum's header, others 501 NotImplemented.
    """
    return status_of(error) == "501" or (
        status_of(error) == "400" and code_of(error) in {"400", "InvalidArgument", "InvalidRequest", "NotImplemented"}
    )


def takes_no_such_request(error: ClientError) -> bool:
    """Whether a server refuses the request as such (DeleteObjects without Content-MD5, for instance), not its sender."""
    return status_of(error) in {"400", "405", "411", "501"} and code_of(error) in {
        "",
        "400",
        "405",
        "411",
        "501",
        "InvalidArgument",
        "InvalidDigest",
        "InvalidRequest",
        "MethodNotAllowed",
        "MissingContentLength",
        "MissingContentMD5",
        "NotImplemented",
    }


def takes_no_conditions(error: ClientError) -> bool:
    """Whether a server says that it does not take If-Match or If-None-Match."""
    if code_of(error) in {"NotImplemented", "501"} or status_of(error) == "501":
        return True
    said = " ".join(str(value) for value in error.response.get("Error", {}).values()).lower()
    return status_of(error) == "400" and any(word in said for word in ("if-match", "if-none-match", "conditional"))
