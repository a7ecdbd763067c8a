"""An S3 that takes no SHA-256, as Backblaze B2: a proxy in front of a real S3 server, which refuses in B2's words.

B2 documents which headers it refuses (https://www.backblaze.com/docs/cloud-storage-s3-compatible-api); its answer is as in
home-assistant/core#143995 and vatesfr/xen-orchestra#8358.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tests.chaos.s3_proxy import S3Proxy

_REFUSED = ("x-amz-checksum-", "x-amz-sdk-checksum-algorithm")


class B2Like(S3Proxy):
    """As `S3Proxy`.

    Attributes:
        refused: How often each header has been refused, by its name.
        with_md5: PUTs of objects and parts that carried Content-MD5.
        without: PUTs of objects and parts that carried none.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.refused: Counter[str] = Counter()
        self.with_md5 = self.without = 0
        self.refusal = self._refusal

    def _refusal(self, method: str, address: str, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        for name in map(str.lower, headers.keys()):
            if name.startswith(_REFUSED):
                self.refused[name] += 1
                return 400, "InvalidArgument", f"Unsupported header '{name}' received for this API call."
        if method == "PUT" and "/" in address.strip("/") and "x-amz-copy-source" not in headers:
            if "content-md5" in headers:
                self.with_md5 += 1
            else:
                self.without += 1
        return None
