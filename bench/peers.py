"""What users would run instead, as the processes that they would start.

    rclone-N          ``rclone copy`` from http to s3, ``--transfers N``
    script-N          the tutorials' script: N threads, ``requests`` with Basic, a new session per image, boto3 put_object
    physionet+s5cmd   ``physionet download`` (PhysioNet's own client, from PyPI), then ``s5cmd cp``: two passes over the disk

PhysioNet's client accepts another server only through its Python function, which is called here; PhysioNet's password
check does not accept its User-Agent today, so it is measured without a password. It is installed into its own environment
at the first use.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench._measure import STATE, Cost, environment, measure, python
from demo import stack
from physionet_mirror.dataset import MIMIC_CXR_JPG

PREFIX = MIMIC_CXR_JPG.name
PHYSIONET_CLIENT = "physionet==0.2.0"
AGENT = "Wget/1.21 (bench)"


@dataclass(frozen=True)
class Case:
    """Source and destination of a measurement.

    Attributes:
        url: URL of the file server.
        login: User and password, or None if none is needed.
        endpoint: S3 endpoint.
        keys: Access key and secret.
        bucket: An empty bucket.
        version: The dataset's folder, for the list of its images.
        folder: For logs and what a client leaves on disk.
        keeps: Whether S3 keeps the objects; a sink does not.
    """

    url: str
    login: tuple[str, str] | None
    endpoint: str
    keys: tuple[str, str]
    bucket: str
    version: Path
    folder: Path
    keeps: bool = True

    def images(self) -> list[tuple[str, str]]:
        """(path, SHA-256) of each image."""
        lines = (line.split(" ", 1) for line in (self.version / "SHA256SUMS.txt").read_text().splitlines())
        return [(path, sha256) for sha256, path in lines]


def run(client: str, case: Case) -> dict[str, float]:
    """Run a client: ``images`` a second, ``cpu`` seconds per 1,000 images, ``peak`` MB, ``start`` seconds.

    Images a second count from the first request if the client reports its time (the script does, since the start of
    Python is not compared), otherwise over the whole process.
    """
    kind, _, number = client.partition("-")
    case.folder.mkdir(parents=True, exist_ok=True)
    count = len(case.images())
    if kind == "rclone":
        cost = measure(_rclone(case, number), _rclone_environment(case), case.folder / "rclone.log")
        return _figures(count, cost.seconds, cost.cpu, cost.peak_mb)
    if kind == "script":
        cost = measure(python("bench.peers", "--script", number), _environment(case), case.folder / "script.log")
        inner = cost.json()
        return _figures(count, inner["seconds"], inner["cpu"], cost.peak_mb)
    if client == "physionet+s5cmd":
        costs = _physionet_and_s5cmd(case)
        return _figures(count, sum(c.seconds for c in costs), sum(c.cpu for c in costs), max(c.peak_mb for c in costs))
    raise ValueError(client)


def _figures(count: int, seconds: float, cpu: float, peak: float) -> dict[str, float]:
    return {"rate": count / seconds, "cpu": cpu * 1000 / count, "peak": peak, "seconds": seconds}


# -- rclone ------------------------------------------------------------------------------------------------------------


def _rclone(case: Case, transfers: str) -> list[str | Path]:
    paths = case.folder / "paths.txt"
    paths.write_text("".join(f"{path}\n" for path, _ in case.images()))
    command: list[str | Path] = [
        Path(sys.executable).with_name("rclone"), "copy", "from:", f"to:{case.bucket}/{PREFIX}",
        "--files-from", paths, "--no-traverse", "--transfers", transfers, "--checkers", transfers, "--user-agent", AGENT,
    ]  # fmt: skip
    # A sink cannot be asked about the objects it received; so rclone saves a HEAD per object.
    return command if case.keeps else [*command, "--s3-no-head", "--no-check-dest", "--s3-use-multipart-etag=false"]


def _rclone_environment(case: Case) -> dict[str, str]:
    env = {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_FROM_TYPE": "http",
        "RCLONE_CONFIG_FROM_URL": f"{case.url}/files/{PREFIX}/",
        "RCLONE_CONFIG_TO_TYPE": "s3",
        "RCLONE_CONFIG_TO_PROVIDER": "Other",
        "RCLONE_CONFIG_TO_ENDPOINT": case.endpoint,
        "RCLONE_CONFIG_TO_REGION": stack.REGION,
        "RCLONE_CONFIG_TO_ACCESS_KEY_ID": case.keys[0],
        "RCLONE_CONFIG_TO_SECRET_ACCESS_KEY": case.keys[1],
        "RCLONE_S3_NO_CHECK_BUCKET": "true",
    }
    if case.login:
        env["RCLONE_CONFIG_FROM_HEADERS"] = "Authorization,Basic " + b64encode(":".join(case.login).encode()).decode()
    return environment(env)


# -- the script --------------------------------------------------------------------------------------------------------


def _environment(case: Case) -> dict[str, str]:
    given = {"url": case.url, "login": case.login, "endpoint": case.endpoint, "keys": case.keys, "bucket": case.bucket}
    return environment({"BENCH": json.dumps({**given, "sums": str(case.version / "SHA256SUMS.txt")})})


def _script(given: dict[str, Any], threads: int) -> None:
    """The tutorial's script in full; prints its cost from the first request on."""
    import time
    from concurrent.futures import ThreadPoolExecutor

    import boto3
    import requests

    keys = {"aws_access_key_id": given["keys"][0], "aws_secret_access_key": given["keys"][1]}
    s3 = boto3.client("s3", endpoint_url=given["endpoint"], region_name=stack.REGION, **keys)

    def copy(path: str) -> None:
        with requests.Session() as session:
            if given["login"]:
                session.auth = tuple(given["login"])
            session.headers["User-Agent"] = AGENT
            answer = session.get(f"{given['url']}/files/{PREFIX}/{path}", timeout=600)
            answer.raise_for_status()
            s3.put_object(Bucket=given["bucket"], Key=f"{PREFIX}/{path}", Body=answer.content)

    paths = [line.split(" ", 1)[1] for line in Path(given["sums"]).read_text().splitlines()]
    begun, cpu = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(copy, paths))
    print(json.dumps({"seconds": time.monotonic() - begun, "cpu": time.process_time() - cpu}))


# -- PhysioNet's own client, then s5cmd --------------------------------------------------------------------------------


def _physionet_and_s5cmd(case: Case) -> list[Cost]:
    target = case.folder / "downloaded"
    shutil.rmtree(target, ignore_errors=True)
    call = (
        "import sys; from physionet.download import download;"
        "download(sys.argv[1], sys.argv[2], sys.argv[3], source='physionet', base_url=sys.argv[4])"
    )
    fetch = [_physionet_python(), "-c", call, MIMIC_CXR_JPG.slug, MIMIC_CXR_JPG.version, target, case.url]
    copy = [
        Path(sys.executable).with_name("s5cmd"), "--endpoint-url", case.endpoint, "--log", "error",
        "cp", f"{target}/{MIMIC_CXR_JPG.slug}-{MIMIC_CXR_JPG.version}/", f"s3://{case.bucket}/{PREFIX}/",
    ]  # fmt: skip
    env = environment(
        {"AWS_ACCESS_KEY_ID": case.keys[0], "AWS_SECRET_ACCESS_KEY": case.keys[1], "AWS_REGION": stack.REGION}
    )
    try:
        # With PYTHONPATH it would import from this project's folders.
        fetched = measure(fetch, environment({"PYTHONPATH": ""}), case.folder / "physionet.log")
        return [fetched, measure(copy, env, case.folder / "s5cmd.log")]
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _physionet_python() -> Path:
    home = STATE / "physionet-client"
    if not (home / ".ready").exists():
        print(f"Installing {PHYSIONET_CLIENT} into {home}", file=sys.stderr)
        uv = python("uv")
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, home], check=True)
        where = ["--python", home / "bin" / "python"]
        subprocess.run([*uv, "pip", "install", "--quiet", *where, PHYSIONET_CLIENT], check=True)
        (home / ".ready").touch()
    return home / "bin" / "python"


def main(arguments: Sequence[str] | None = None) -> None:
    """The script's process; the parts of the benchmark start it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] != ["--script"]:
        sys.exit("Peers are measured by the parts: python -m bench streaming password")
    _script(json.loads(os.environ["BENCH"]), int(given[1]))


if __name__ == "__main__":
    main()
