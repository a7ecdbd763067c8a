"""Verification at the level ``checksum``: requests a second, compared with what the same server can serve.

    python -m bench.verification [--short] [--folder .state/bench/verification]

20,000 small objects on ``rclone serve s3``, none of them in the cache: one HEAD with ChecksumMode each. *s5cmd* runs
``head`` for every key, with as many workers as we use (it does not ask for the checksum). It shows what a Go client gets
from this server on the same cores, and the target is at least 80 % of it. *boto3* is as many threads calling
``head_object``. *bare loop* is the server's own limit, for orientation: requests signed before the clock starts, written to
sixteen open sockets by two processes that read no more than the status (its CPU column includes the signing); no client
that signs its requests and reads the answers comes near. Rounds alternate, and medians are shown.

The next line is the same verification against a server that takes 25 ms for an answer, as S3 does: 32 requests under way
at 25 ms are at most 1,280 a second. Four stream tasks do it side by side, each for its own shards: so the line after that is
the whole dataset, a quarter by each of four processes.

*Adoption* is a bucket that another tool filled: 10,000 objects of 300 KB without a SHA-256 in S3, so that each is read
back and hashed. *boto3* is 32 threads calling ``get_object`` in one process, as ``verify`` did earlier; *verify* is one
process; *shard tasks* are four, each with a quarter, as ``missing?`` runs them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import rerun
from bench._measure import STATE, Check, alternating, cpu_of, environment, measure, medians, python, scratch, spread
from bench.pace import make_images
from demo import stack, synthetic
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.verification import WORKERS

OBJECTS, SIZE = 20_000, 2_000
ADOPTED, ADOPTED_SIZE = 10_000, 300_000
ADOPTERS = {"boto3": 1, "verify": 1, "shard tasks": 4}
"""Number of processes of each."""
ADOPTION = 3.0
CLIENTS = ("verify", "boto3", "s5cmd", "bare loop")
PREFIX, BUCKET = MIMIC_CXR_JPG.name, "bench"
SHARE = 0.8
DELAY = 0.025  # seconds that S3 takes for a HEAD in the same region
FAR = WORKERS / DELAY  # requests a second
WHOLE, STREAMS, WHOLE_SECONDS = 377_110, 4, 120.0
"""Images of MIMIC-CXR-JPG, the processes that ask for them, and the seconds in which they should have done so."""


def run(folder: Path, *, short: bool = False, rounds: int = 5) -> dict[str, Any]:
    """Measure: ``{"objects", "clients": [{"client", "rate", "cpu", …}], "distant": {…}}``."""
    objects = OBJECTS // 10 if short else OBJECTS
    where = scratch(folder, "s3")
    images = make_images(folder / "images", objects, SIZE)
    version = folder / "images" / PREFIX
    sums = version / "SHA256SUMS.txt"
    with stack.s3_server(where, log=folder / "s3.log") as s3:
        s3.make_bucket(BUCKET)
        _store(s3, version, images)
        given = {"endpoint": s3.endpoint, "keys": (s3.access_key, s3.secret_key), "sums": str(sums)}
        commands = _commands(given, folder)
        _once(given, commands["boto3"], folder)  # warm-up: the server hashes every file once and caches that

        def once(client: str, _: int) -> dict[str, float]:
            found = _once(given, commands[client], folder)
            # The next round must start without a cache.
            _forget(s3, where)
            return found

        found = alternating(CLIENTS, 2 if short else rounds, once)
    clients = [{"client": client, **medians(one), "rates": spread(one, "rate")} for client, one in found.items()]
    distant = _distant(folder, sums, objects)
    whole = _whole(folder, objects if short else WHOLE)
    adoption = _adoption(folder, ADOPTED // 20 if short else ADOPTED, 1 if short else 3)
    return {"objects": objects, "clients": clients, "distant": distant, "whole": whole, "adoption": adoption}


def _forget(s3: stack.S3Server, where: Path) -> None:
    """Delete our cache of verified objects, through the server, because it caches its folders."""
    for file in (where / BUCKET / PREFIX / "_mirror" / "verified").glob("*"):
        s3.client().delete_object(Bucket=BUCKET, Key=f"{PREFIX}/_mirror/verified/{file.name}")


def _adoption(folder: Path, count: int, rounds: int) -> list[dict[str, Any]]:
    """Measure objects that were put on the server's disk without checksums."""
    make_images(folder / "adopted", count, ADOPTED_SIZE)
    version = folder / "adopted" / PREFIX
    where = folder / "adopted-s3"
    shutil.rmtree(where, ignore_errors=True)
    bucket = where / BUCKET / PREFIX
    with stack.s3_server(where, log=folder / "adopted.log") as s3:
        s3.make_bucket(BUCKET)
        bucket.mkdir(parents=True)
        (version / "files").rename(bucket / "files")
        lines = (version / "SHA256SUMS.txt").read_text().splitlines(keepends=True)

        def once(client: str, _: int) -> dict[str, float]:
            _forget(s3, where)
            given = {"endpoint": s3.endpoint, "keys": (s3.access_key, s3.secret_key)}
            kind = "read boto3" if client == "boto3" else "read"
            return _side_by_side(folder, lines, given, kind, ADOPTERS[client])

        once("verify", 0)  # warm-up: the server computes each file's ETag once
        found = alternating(tuple(ADOPTERS), rounds, once)
    shutil.rmtree(where, ignore_errors=True)
    return [{"client": client, "objects": count, **medians(one)} for client, one in found.items()]


def _side_by_side(
    folder: Path, lines: Sequence[str], given: dict[str, Any], kind: str, processes: int
) -> dict[str, float]:
    """Divide the lines of a checksum file among processes that begin together: ``{"rate", "cpu", "seconds"}``."""

    def one(number: int) -> dict[str, Any]:
        sums = folder / f"part-{number}.txt"
        sums.write_text("".join(lines[len(lines) * number // processes : len(lines) * (number + 1) // processes]))
        env = environment({"BENCH": json.dumps({**given, "sums": str(sums)})})
        return measure(python("bench.verification", "--child", kind), env, folder / f"part-{number}.log").json()

    with ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(one, range(processes)))
    seconds = max(f["begun"] + f["seconds"] for f in found) - min(f["begun"] for f in found)
    cpu = 1000 * sum(f["cpu"] for f in found) / len(lines)
    return {"rate": len(lines) / seconds, "cpu": cpu, "seconds": seconds}


def _whole(folder: Path, images: int) -> dict[str, float]:
    """Verify a whole dataset in the bucket of a server 25 ms away, by four processes."""
    root = folder / "whole"
    synthetic.ensure(root, images, seed=1, with_images=False)
    version = root / PREFIX
    with rerun.listing(version, folder / "whole.log", delay=DELAY) as server:
        lines = (version / "SHA256SUMS.txt").read_text().splitlines(keepends=True)
        wanted = [line for line in lines if line.split(" ", 1)[1].startswith("files/")]
        given = {"endpoint": server.url, "keys": rerun.KEYS}
        return {"objects": len(wanted), **_side_by_side(folder, wanted, given, "verify", STREAMS)}


def _store(s3: stack.S3Server, version: Path, images: Mapping[str, str]) -> None:
    """Store the images as a stream task does: rclone's server returns a checksum only if the object came with one."""
    from physionet_mirror.s3.bucket import Bucket

    bucket = Bucket.open(s3.session(), BUCKET, PREFIX, endpoint_url=s3.endpoint)

    def put(path: str) -> None:
        bucket.put(path, (version / path).read_bytes(), content_type="image/jpeg")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, images))


def _distant(folder: Path, sums: Path, objects: int) -> dict[str, float]:
    with rerun.listing(sums.parent, folder / "listing.log", delay=DELAY) as server:
        given = {"endpoint": server.url, "keys": rerun.KEYS, "sums": str(sums)}
        before = cpu_of([server.service])
        found = _once(given, _commands(given, folder)["verify"], folder)
        used = cpu_of([server.service]) - before
        return {"objects": objects, **found, "server_cpu": 1000 * used / objects}


def _commands(given: dict[str, Any], folder: Path) -> dict[str, list[str | Path]]:
    keys = [line.split(" ", 1)[1] for line in Path(given["sums"]).read_text().splitlines()]
    script = folder / "heads.txt"
    script.write_text("".join(f"head s3://{BUCKET}/{PREFIX}/{key}\n" for key in keys))
    s5cmd = Path(sys.executable).with_name("s5cmd")
    return {
        **{client: [*python("bench.verification", "--child", client)] for client in ("verify", "boto3", "bare loop")},
        "s5cmd": [s5cmd, "--endpoint-url", given["endpoint"], "--numworkers", str(WORKERS), "run", script],
    }


def _once(given: dict[str, Any], command: list[str | Path], folder: Path) -> dict[str, float]:
    keys = {
        "AWS_ACCESS_KEY_ID": given["keys"][0],
        "AWS_SECRET_ACCESS_KEY": given["keys"][1],
        "AWS_REGION": stack.REGION,
    }
    cost = measure(command, environment({"BENCH": json.dumps(given), **keys}), folder / "client.log")
    if "--child" in command:
        inner = cost.json()
        return {"rate": inner["requests"] / inner["seconds"], "cpu": inner["cpu"] * 1000 / inner["requests"]}
    count = len(Path(given["sums"]).read_text().splitlines())
    return {"rate": count / cost.seconds, "cpu": cost.cpu * 1000 / count}


# -- the measured processes --------------------------------------------------------------------------------------------


def _child(client: str, given: dict[str, Any]) -> None:
    images = [line.split(" ", 1) for line in Path(given["sums"]).read_text().splitlines()]
    kinds = {
        "verify": _verify,
        "boto3": _boto3,
        "bare loop": _bare_loop,
        "read": _read_back,
        "read boto3": _read_with_boto3,
    }
    work = kinds[client](given, images)
    begun, cpu = time.monotonic(), os.times()
    requests = work()
    now = os.times()
    used = sum(now[:4]) - sum(cpu[:4])
    print(json.dumps({"requests": requests, "begun": begun, "seconds": time.monotonic() - begun, "cpu": used}))


def _verify(given: dict[str, Any], images: list[list[str]]) -> Any:
    import boto3

    from physionet_mirror.files import File
    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.verification import verify

    session = boto3.Session(*given["keys"], region_name=stack.REGION)
    bucket = Bucket.open(session, BUCKET, PREFIX, endpoint_url=given["endpoint"])
    wanted = [File(path, sha256) for sha256, path in images]

    def work() -> int:
        verdict = verify(wanted, bucket)
        assert verdict.passed, verdict.problems[:3]
        assert verdict.remembered == verdict.read_back == 0, verdict.requests
        return len(wanted)

    return work


def _read_back(given: dict[str, Any], images: list[list[str]]) -> Any:
    """What `missing?` does with a shard: compare, and read back objects without a checksum."""
    import boto3

    from physionet_mirror.compare import Comparison, compare
    from physionet_mirror.files import File
    from physionet_mirror.s3.bucket import Bucket

    session = boto3.Session(*given["keys"], region_name=stack.REGION)
    bucket = Bucket.open(session, BUCKET, PREFIX, endpoint_url=given["endpoint"])
    wanted = [File(path, sha256) for sha256, path in images]

    def work() -> int:
        found = compare(wanted, bucket, Comparison("checksum"), span=len(wanted))
        assert not found.problems, found.problems[:3]
        assert found.read_back == len(wanted), found
        return len(wanted)

    return work


def _read_with_boto3(given: dict[str, Any], images: list[list[str]]) -> Any:
    client = _client(given)

    def read(image: list[str]) -> bool:
        sha256, path = image
        key = {"Bucket": BUCKET, "Key": f"{PREFIX}/{path}"}
        client.head_object(**key, ChecksumMode="ENABLED")
        digest = hashlib.sha256()
        for chunk in client.get_object(**key)["Body"].iter_chunks(1 << 20):
            digest.update(chunk)
        return digest.hexdigest() == sha256

    def work() -> int:
        with ThreadPoolExecutor(WORKERS) as pool:
            assert all(pool.map(read, images))
        return len(images)

    return work


def _client(given: dict[str, Any]) -> Any:
    import boto3
    from botocore.config import Config

    session = boto3.Session(*given["keys"], region_name=stack.REGION)
    return session.client("s3", endpoint_url=given["endpoint"], config=Config(max_pool_connections=WORKERS))


def _boto3(given: dict[str, Any], images: list[list[str]]) -> Any:
    client = _client(given)

    def head(path: str) -> bool:
        return "ChecksumSHA256" in client.head_object(Bucket=BUCKET, Key=f"{PREFIX}/{path}", ChecksumMode="ENABLED")

    def work() -> int:
        with ThreadPoolExecutor(WORKERS) as pool:
            assert all(pool.map(head, (path for _, path in images)))
        return len(images)

    return work


def _bare_loop(_: dict[str, Any], images: list[list[str]]) -> Any:
    """Two processes, eight sockets each; requests are signed before the clock starts."""
    child = [sys.executable, "-m", "bench.verification", "--child-loop"]
    halves = []
    for half in (0, 1):
        env = dict(os.environ) | {"BENCH_HALF": str(half)}
        process = subprocess.Popen(child, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        halves.append(process)

    def work() -> int:
        for process in halves:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait() for process in halves] == [0, 0]
        return len(images)

    return work


def _loop(given: dict[str, Any], half: int) -> None:
    from urllib.parse import urlsplit

    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    at = urlsplit(given["endpoint"])
    signer = S3SigV4Auth(Credentials(*given["keys"]), "s3", stack.REGION)
    raw = []
    for line in Path(given["sums"]).read_text().splitlines()[half::2]:
        target = f"/{BUCKET}/{PREFIX}/{line.split(' ', 1)[1]}"
        request = AWSRequest("HEAD", given["endpoint"] + target, headers={"x-amz-checksum-mode": "ENABLED"})
        signer.add_auth(request)
        headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        raw.append(f"HEAD {target} HTTP/1.1\r\nHost: {at.netloc}\r\n{headers}\r\n".encode())

    def work(requests: list[bytes]) -> None:
        with socket.create_connection((at.hostname, at.port)) as connection:
            for request in requests:
                connection.sendall(request)
                answer = b""
                while not answer.endswith(b"\r\n\r\n"):
                    answer += connection.recv(4096)
                assert answer.startswith(b"HTTP/1.1 200"), answer

    threads = [threading.Thread(target=work, args=(raw[n::8],)) for n in range(8)]
    random.shuffle(threads)
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- the result --------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = ["| HEADs with checksum | requests/s | all rounds | client CPU ms a request |", "|---|---|---|---|"]
    lines += [f"| {c['client']} | {c['rate']:.0f} | {c['rates']} | {c['cpu']:.2f} |" for c in result["clients"]]
    far = result["distant"]
    lines.append(
        f"| verify, a server 25 ms away | {far['rate']:.0f} | of {FAR:.0f} | {far['cpu']:.2f} (server: {far['server_cpu']:.2f}) |"
    )
    whole = result["whole"]
    lines.append(
        f"| {STREAMS} processes, {whole['objects']:,} objects 25 ms away | {whole['rate']:.0f} | {whole['seconds']:.0f} s in all | "
        f"{whole['cpu']:.2f} |"
    )
    lines += [
        "",
        "| adoption: objects read back | objects/s | client CPU ms an object |",
        "|---|---|---|",
        *(
            f"| {a['client']}, {a['objects']:,} x 300 KB | {a['rate']:.0f} | {a['cpu']:.2f} |"
            for a in result["adoption"]
        ),
    ]
    return "\n".join(lines)


def checks(result: dict[str, Any]) -> list[Check]:
    """The targets: against s5cmd, against the limit set by latency, and for adoption against boto3."""
    rate = {c["client"]: c["rate"] for c in result["clients"]}
    share = rate["verify"] / rate["s5cmd"]
    far = result["distant"]["rate"] / FAR
    adopted = {a["client"]: a["rate"] for a in result["adoption"]}
    gain = adopted["shard tasks"] / adopted["boto3"]
    return [
        Check(
            "verification: HEADs/s of what s5cmd gets from the server", f"{share:.0%}", f"{SHARE:.0%}", share >= SHARE
        ),
        Check("verification: HEADs/s of what S3 at 25 ms gives", f"{far:.0%}", f"{SHARE:.0%}", far >= SHARE),
        Check(
            f"verification: s for {result['whole']['objects']:,} objects, {STREAMS} processes, S3 at 25 ms",
            f"{result['whole']['seconds']:.0f}",
            f"{WHOLE_SECONDS:.0f}",
            result["whole"]["seconds"] <= WHOLE_SECONDS,
        ),
        Check("adoption: objects/s over boto3 in verify", f"{gain:.1f} x", f"{ADOPTION:.0f} x", gain >= ADOPTION),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=STATE / "verification")
    parser.add_argument("--short", action="store_true", help="2,000 objects")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--child-loop", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child_loop:
        _loop(json.loads(os.environ["BENCH"]), int(os.environ["BENCH_HALF"]))
        return
    if options.child:
        _child(options.child, json.loads(os.environ["BENCH"]))
        return
    result = run(options.folder.resolve(), short=options.short)
    print(table(result))
    sys.exit(not all(check.ok for check in checks(result)))


if __name__ == "__main__":
    main()
