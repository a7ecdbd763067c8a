"""The audit of a bucket: are all files that were ever verified, or are in it, still what PhysioNet publishes?

Its imports are heavy, so import it only inside a task.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Any, Literal

from physionet_mirror import globs, index, manifest
from physionet_mirror.errors import InputError, MetadataError
from physionet_mirror.files import File
from physionet_mirror.layout import INDEX, MANIFEST, RunLayout
from physionet_mirror.records import Audit, RunReport
from physionet_mirror.request import Level, Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.shards import slice_of
from physionet_mirror.steps.plan import earlier_reports
from physionet_mirror.verification import Verdict, verify
from physionet_mirror.verified_cache import Memory, groups_of

log = logging.getLogger(__name__)

_CARRIED = ("storage_class", "connections", "source", "approve_above_gb")
"""Params of the latest run to the bucket that a repair takes over."""

_MOST_NAMED = 2000  # files in the conf of a repair
_NAMED = 10  # files named in the log; failed_images.txt names all


@dataclass(frozen=True)
class Share:
    """Part ``number`` (from 1) of ``of`` nearly equal, contiguous parts of the dataset."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str, day: datetime) -> Share:
        """``2/8`` is that part; ``*/8`` is another part each week, so that eight weeks cover everything.

        Raises:
            InputError: It is neither.
        """
        if match := re.fullmatch(r"(\*|[1-9][0-9]{0,2})/([1-9][0-9]{0,2})", str(text)):
            of = int(match[2])
            if match[1] == "*":
                return cls((day.toordinal() - 1) // 7 % of + 1, of)
            if int(match[1]) <= of:
                return cls(int(match[1]), of)
        raise InputError(f"share: {str(text)[:40]!r} is neither like 2/8 nor like */8. Nothing was done.")


def audit(
    bucket: Bucket, level: Level, share: Share, run: str | None = None, *, noun: Literal["image", "file"] = "image"
) -> Verdict:
    """Compare one share of the bucket with PhysioNet's checksums, asking S3 again about every file.

    The audit covers the files in the training index (so that a lost one is noticed) and every file of the manifest that is
    in the bucket (so that a foreign one is). It changes neither index nor files.

    Args:
        bucket: The bucket to audit.
        level: ``count``, ``checksum`` or ``content``.
        share: The part of the dataset to audit.
        run: The attempt at a run that audits (``verified_cache.attempt_of``); a retried task does not ask again about
            what this attempt has checked already.
        noun: ``image``: only the images of a dataset of radiographs; ``file``: any file.

    Raises:
        MetadataError: There is no manifest, so nothing was mirrored here.
    """
    try:
        file = BytesIO(bucket.read(MANIFEST))
    except FileNotFoundError:
        raise MetadataError(
            f"{bucket.uri(MANIFEST)} does not exist, so there is nothing to compare with. Nothing was done. Check bucket and "
            "prefix; a run of mimic_cxr_jpg or physionet_project (a dry run is enough) writes it."
        ) from None
    columns = manifest.columns_of(file)
    known = manifest.read(file, [name for name in ("path", "sha256", "dicom_id") if name in columns])
    if noun == "image" and "dicom_id" in columns:
        known = manifest.images(known)
    part = known.iloc[slice_of(len(known), share.number - 1, share.of)]
    if part.empty:
        return Verdict(level=level)
    expected = _ever_verified(bucket, part["path"].tolist())
    log.info("Share %s: %s %ss of the dataset, compared by %s.", share, f"{len(part):,}", noun, level)
    images = map(File, part["path"], part["sha256"])
    verdict = verify(images, bucket, level, run=run, anew=True, on_progress=_log_progress, noun=noun)
    verdict.problems = [p for p in verdict.problems if p.reason != "missing" or p.path in expected]
    return verdict


def _ever_verified(bucket: Bucket, part: Sequence[str]) -> set[str]:
    """The images of the index; if it is damaged, this part's images in the cache of verified ones."""
    known = index.read(bucket, ["path"])
    if known is not None:
        return set(known["path"].to_pylist())
    return {path for path, *_ in Memory.load(bucket, groups_of(part))} if bucket.head(INDEX) else set()


def _log_progress(done: int, total: int) -> None:
    if done % 20_000 == 0 or done == total:
        log.info("%s of %s compared.", f"{done:,}", f"{total:,}")


def write_audit(bucket: Bucket, run: RunLayout, verdict: Verdict, share: Share, started: datetime) -> Audit:
    """Write ``audit.json`` and, where something differs, ``failed_images.txt``; returns the former."""
    cost = verdict.cost(bucket.region())
    failed = "".join(f"{problem.path}\t{problem.reason}\n" for problem in verdict.problems)
    if failed:
        bucket.write_text(run.failed_images, failed)
    found = Audit(
        run=run.run_id,
        dag_id=run.dag_id,
        started=started.isoformat(timespec="seconds"),
        destination=bucket.uri(),
        level=verdict.level,
        share=str(share),
        looked_at=verdict.selected,
        verified=verdict.verified,
        differing=dict(Counter(problem.reason for problem in verdict.problems)),
        bytes=verdict.bytes,
        seconds=round(verdict.seconds, 1),
        requests=verdict.requests,
        cost_usd=round(cost, 6),
        notes=verdict.notes,
        failed_images=bucket.uri(run.failed_images) if failed else None,
    )
    bucket.write_json(run.audit_json, found.to_json())
    for problem in verdict.problems[:_NAMED]:
        log.warning("%s: %s. %s", problem.path, problem.reason, problem.detail)
    log.info(
        "%s of %s %ss are what PhysioNet publishes (%s, share %s); %s differ. %.0f s, %s S3 requests, $%.4f.",
        f"{verdict.verified:,}",
        f"{verdict.selected:,}",
        verdict.noun,
        verdict.level,
        share,
        f"{len(verdict.problems):,}",
        verdict.seconds,
        f"{sum(verdict.requests.values()):,}",
        cost,
    )
    return found


def _named(bucket: Bucket, found: Audit) -> list[str]:
    """Globs of the files that an audit names, `_MOST_NAMED` of them at most."""
    path = (found.failed_images or "").removeprefix(bucket.uri() + "/")
    paths = [line.partition("\t")[0] for line in bucket.read_text(path).splitlines() if line]
    if len(paths) > _MOST_NAMED:
        log.warning(
            "%s files differ; this repair fetches the first %s, and the next audit names the rest.",
            f"{len(paths):,}",
            f"{_MOST_NAMED:,}",
        )
    return [globs.escape(path) for path in paths[:_MOST_NAMED]]


def repair_params(bucket: Bucket, found: Audit, request: Request | None = None) -> dict[str, Any]:
    """The params of a run that fetches what an audit found missing or wrong, with the settings of the bucket's latest run.

    Args:
        bucket: The audited bucket.
        found: What `write_audit` returned.
        request: What the audit was asked: of a project, its files are named one by one. None = for images.
    """
    params: dict[str, Any] = {"bucket": bucket.name, "prefix": bucket.prefix, "verify": found.level}
    if request is not None and request.selection.noun == "file":
        params |= {"project": request.dataset.name, "include": _named(bucket, found)}
    else:
        params |= {"select": "all", "file_list": found.failed_images}
    latest = next(iter(earlier_reports(bucket)), RunReport()).params
    if not latest:
        log.info("There is no report of an earlier run here: the repair uses the defaults for all other settings.")
        return params
    carried = {name: latest[name] for name in _CARRIED if latest.get(name) is not None}
    if carried.get("storage_class") in ("GLACIER", "DEEP_ARCHIVE") and params["verify"] == "content":
        params["verify"] = "checksum"  # what is archived cannot be read back
    try:
        Request.from_params({**params, **carried})
    except InputError as error:  # the report may be of another version, or damaged
        log.warning("The settings of the latest run are ignored: %s", error)
        return params
    log.info("As in the latest run to this bucket: %s", ", ".join(f"{k}={v}" for k, v in carried.items()) or "defaults")
    return {**params, **carried}
