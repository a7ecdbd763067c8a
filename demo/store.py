"""Try an S3 before a dataset goes there: what it can do, and a small mirror of made-up images, each byte read back.

    AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… python -m demo.store <endpoint> <bucket>

The bucket must exist; all that is written lies below one new prefix and is deleted in the end. Needs no PhysioNet account.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import boto3

from demo import synthetic
from demo.lookalike import Lookalike, User
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.errors import MirrorError
from physionet_mirror.layout import RunLayout
from physionet_mirror.records import Store
from physionet_mirror.request import Request
from physionet_mirror.s3.bucket import Bucket
from physionet_mirror.s3.probe import probe
from physionet_mirror.source.download import Download
from physionet_mirror.source.physionet import PhysioNet
from physionet_mirror.steps import fetch_metadata, mirror_shard, plan, verify

IMAGES = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found; 0 = each byte is right, 1 = something is not."""
    parser = argparse.ArgumentParser(prog="python -m demo.store", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("endpoint", help="https://…, or http://127.0.0.1:… of a server on this machine")
    parser.add_argument("bucket", help="an existing one")
    parser.add_argument("--region", default="us-east-1")
    given = parser.parse_args(arguments)
    session = boto3.Session(region_name=given.region)
    bucket = Bucket.open(session, given.bucket, f"store-check-{uuid4().hex[:8]}", endpoint_url=given.endpoint)
    try:
        bucket.check()
    except MirrorError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    try:
        store = Store(**asdict(probe(bucket)))
        print("\n".join(f"{name:<20} {'yes' if does else 'no'}" for name, does in asdict(store).items()))
        print("\n".join(f"- {lack}" for lack in store.lacks()))
        with tempfile.TemporaryDirectory() as folder:
            wrong = mirror(Path(folder), bucket, store)
    except MirrorError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        bucket.discard(entry.path for entry in bucket.list())
    print(f"{IMAGES} images mirrored and verified; {wrong} of them read back wrong.")
    return int(wrong > 0)


def mirror(folder: Path, bucket: Bucket, store: Store) -> int:
    """Mirror made-up images by the steps of a run; how many do not read back as they were published.

    Raises:
        MirrorError: A step fails, or the verification does.
    """
    synthetic.write(folder, synthetic.cohort(IMAGES, seed=1, long_side=256))
    params = {"bucket": bucket.name, "prefix": bucket.prefix, "select": "all"}
    request, run, began = Request.from_params(params), RunLayout("store-check"), datetime.now(UTC)
    with (
        Lookalike(folder, users={"reader": User("password")}, check_seconds=0) as site,
        closing(PhysioNet(site.url, "reader", "password", connections=4)) as source,
    ):
        fetch_metadata.fetch_metadata(source, bucket, MIMIC_CXR_JPG)
        made = plan.make_plan(request, bucket, run, streams=1, params=params, store=store)
        for shard in made.shards:
            mirror_shard.find_missing(shard, request, bucket, run, started=began)
            mover = Download(source, MIMIC_CXR_JPG, bucket)
            mirror_shard.stream_shard(shard, request, mover, bucket, run, connections=4, stop=mirror_shard.Stop())
    verdict, _ = verify.verify_run(request, bucket, run, params=params, started=began)
    verdict.raise_if_failed()
    published = {image.path: image.sha256 for image in verdict.ok}
    return sum(hashlib.sha256(bucket.read(path)).hexdigest() != digest for path, digest in published.items()) + (
        IMAGES - len(published)
    )


if __name__ == "__main__":
    sys.exit(main())
