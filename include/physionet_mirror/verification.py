"""The verdict on a selection: is every file in the bucket, and is it what PhysioNet publishes?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from physionet_mirror.compare import WORKERS, Comparison, Verified, compare
from physionet_mirror.errors import VerificationFailed
from physionet_mirror.s3.prices import request_cost

if TYPE_CHECKING:
    from physionet_mirror.files import File
    from physionet_mirror.request import Level
    from physionet_mirror.s3.bucket import Bucket

__all__ = ["Verdict", "Verified", "verify"]


@dataclass
class Verdict(Comparison):
    """The result of a verification: the comparison, and the counts that follow from it.

    Attributes:
        postponed: Images that the run left to a later one because its time was up; neither verified nor failed.
        noun: What was verified: ``image`` or ``file``.
    """

    postponed: list[str] = field(default_factory=list)
    noun: str = "image"

    @property
    def selected(self) -> int:
        """Images that should be in the bucket."""
        return len(self.ok) + len(self.problems)

    @property
    def present(self) -> int:
        """Selected images that are in the bucket, right or not."""
        return self.selected - self.missing

    @property
    def verified(self) -> int:
        """Selected images that are there and right."""
        return len(self.ok)

    @property
    def missing(self) -> int:
        """Selected images that are not in the bucket."""
        return sum(p.reason == "missing" for p in self.problems)

    @property
    def empty(self) -> int:
        """Selected images that are objects of zero bytes."""
        return sum(p.reason == "empty" for p in self.problems)

    @property
    def wrong(self) -> int:
        """Selected images whose object does not match PhysioNet's checksum, without empty ones."""
        return len(self.problems) - self.missing - self.empty

    @property
    def bytes(self) -> int:
        """Total size of the verified images."""
        return sum(image.size for image in self.ok)

    @property
    def passed(self) -> bool:
        """Whether every selected image is there and right."""
        return not self.problems

    def cost(self, region: str | None = None, storage_class: str = "STANDARD") -> float:
        """Price of the S3 requests in US dollars, in the bucket's Region and storage class."""
        return request_cost(self.requests, region, storage_class)

    def postpone(self, paths: Collection[str]) -> None:
        """Count the missing images among ``paths`` as postponed to a later run instead of failed."""
        self.postponed = [p.path for p in self.problems if p.reason == "missing" and p.path in paths]
        if self.postponed:
            later = set(self.postponed)
            self.problems = [p for p in self.problems if p.path not in later]
            self.notes.append(
                f"To be continued: the time was up, and {len(later):,} {self.noun}s are left to the next run, which fetches them."
            )

    def raise_if_failed(self, report: str = "") -> None:
        """Raise `VerificationFailed` unless every selected image is there and right; ``report`` is its URI."""
        if self.passed:
            return
        raise VerificationFailed(
            f"{len(self.problems):,} of {self.selected:,} selected {self.noun}s are not in the bucket as PhysioNet publishes "
            f"them: {self.missing:,} missing, {self.wrong:,} wrong, {self.empty:,} empty. "
            f"The other {self.verified:,} are verified and stay. Trigger the same run again: it fetches only these. "
            + (f"Which and why: {report}" if report else "")
        )


def verify(
    images: Iterable[File],
    bucket: Bucket,
    level: Level = "checksum",
    *,
    run: str | None = None,
    anew: bool = False,
    workers: int = WORKERS,
    on_progress: Callable[[int, int], None] | None = None,
    noun: str = "image",
) -> Verdict:
    """Compare these images with the bucket; ``noun`` names them in messages, the rest is as in `compare.compare`."""
    return compare(
        images, bucket, Verdict(level, noun=noun), run=run, anew=anew, workers=workers, on_progress=on_progress
    )
