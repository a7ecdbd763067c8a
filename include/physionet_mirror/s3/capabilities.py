"""What an S3 that is not Amazon's does not offer, learnt from its answers; each is then done in another way.

Being slow, or refusing us, is not a missing capability: only a server that says so itself is asked otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from botocore.exceptions import ClientError

from physionet_mirror.s3.replies import code_of, status_of


@dataclass
class Capabilities:
    """What one server is known not to take; everything, until it says otherwise.

    Attributes:
        deletes_many: DeleteObjects, up to 1,000 keys a request; else each object is deleted by itself.
        copies_if_absent: CopyObject with If-None-Match; else a copy replaces what appeared meanwhile.
    """

    deletes_many: bool = True
    copies_if_absent: bool = True


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
