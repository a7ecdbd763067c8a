"""Where things lie in the bucket; every path here is relative to the key prefix.

<dataset's own paths>                 files/p10/…, mimic-cxr-2.0.0-split.csv.gz, SHA256SUMS.txt
_mirror/manifest.parquet              every image of the version
_mirror/sums.json                     which SHA256SUMS.txt that was: its ETag at PhysioNet and its SHA-256
_mirror/index.parquet                 the verified images: the training index
_mirror/left.sha256                   what a night left over, for the next one to take along
_mirror/copying/                      copies inside S3 until they are proven
_mirror/verified/<group>.tsv.gz       what was verified when (see verified.py)
_mirror/runs/<run_id>/plan.json       what was asked and how it was cut
                      shards/0000.sha256          one shard's images, as SHA256SUMS.txt writes them
                      shards/0000.missing.sha256  the part of it that is not in the bucket
                      results/0000.json           progress and result of its stream task
                      pace.json       the concurrency that held, for the next shard to start with
                      report.json, report.html, failed_images.txt
"""

from __future__ import annotations

from dataclasses import dataclass

MIRROR = "_mirror/"
MANIFEST = MIRROR + "manifest.parquet"
SUMS_SEEN = MIRROR + "sums.json"
INDEX = MIRROR + "index.parquet"
RUNS = MIRROR + "runs/"
LEFT = MIRROR + "left.sha256"
COPYING = MIRROR + "copying/"


def verified(group: str) -> str:
    """Path of the memory of verified objects of one patient group."""
    return f"{MIRROR}verified/{group}.tsv.gz"


@dataclass(frozen=True)
class RunLayout:
    """The paths of one run below the key prefix."""

    run_id: str

    @property
    def root(self) -> str:
        return f"{RUNS}{self.run_id}/"

    @property
    def plan(self) -> str:
        return self.root + "plan.json"

    def shard(self, index: int) -> str:
        return f"{self.root}shards/{index:04d}.sha256"

    def missing(self, index: int) -> str:
        return f"{self.root}shards/{index:04d}.missing.sha256"

    def result(self, index: int) -> str:
        return f"{self.results}{index:04d}.json"

    @property
    def results(self) -> str:
        return self.root + "results/"

    @property
    def pace(self) -> str:
        return self.root + "pace.json"

    @property
    def report_json(self) -> str:
        return self.root + "report.json"

    @property
    def report_html(self) -> str:
        return self.root + "report.html"

    @property
    def failed_images(self) -> str:
        return self.root + "failed_images.txt"
