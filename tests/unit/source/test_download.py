"""The mover that downloads, between a source and a bucket in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import pytest

from physionet_mirror.dataset import MIMIC_CXR, MIMIC_CXR_JPG, Dataset
from physionet_mirror.errors import Corrupt, NotTheFile
from physionet_mirror.files import File
from physionet_mirror.mover import ALONE, SourceStats, Turn
from physionet_mirror.s3.capabilities import Capabilities
from physionet_mirror.source.body import BIG
from physionet_mirror.source.download import Download

DATA = b"a radiograph"
FILE = File("files/p10/0001.jpg", hashlib.sha256(DATA).hexdigest())


class Body:
    def __init__(self, data: bytes, size: int | None) -> None:
        self.data, self.size = data, size

    def __iter__(self) -> Iterator[bytes]:
        yield self.data[:5]
        yield self.data[5:]
        self.prove()

    def read_into(self, memory: memoryview) -> None:
        memory[:] = self.data[: len(memory)]
        self.prove()

    def prove(self) -> None:
        if hashlib.sha256(self.data).hexdigest() != FILE.sha256:
            raise Corrupt("corrupt")

    def close(self) -> None:
        pass


class Endless(Body):
    def __init__(self) -> None:
        self.size, self.taken = None, 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.taken += 1 << 20
            yield bytes(1 << 20)


class Source:
    def __init__(self, body: Body) -> None:
        self.body, self.stats = body, SourceStats()

    def open(self, _: Dataset, path: str, sha256: str | None, turn: Turn) -> Body:
        assert (path, sha256) == (FILE.path, FILE.sha256)
        turn.answered(serves=True)
        return self.body


class Bucket:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.kinds: set[tuple[str, str]] = set()
        self.uploads = 0
        self.can = Capabilities()

    def put(self, path: str, data: bytes, *, content_type: str, storage_class: str, sha256: str, paced: bool) -> str:
        assert sha256 == hashlib.sha256(data).hexdigest()
        assert paced  # the transfer itself asks S3 for less
        self.kinds.add((content_type, storage_class))
        self.objects[path] = bytes(data)
        return "etag"

    def upload(self, path: str, chunks: Iterable[bytes], *, content_type: str, storage_class: str) -> int:
        data = b"".join(chunks)
        self.uploads += 1
        self.kinds.add((content_type, storage_class))
        self.objects[path] = data
        return len(data)


def move(body: Body, dataset: Dataset = MIMIC_CXR_JPG, storage_class: str = "STANDARD") -> Bucket:
    bucket = Bucket()
    fetched = Download(Source(body), dataset, bucket, storage_class).fetch(FILE, ALONE)  # type: ignore[arg-type]
    assert fetched.size == len(body.data)
    fetched.store()
    assert bucket.objects == {FILE.path: body.data}
    return bucket


@pytest.mark.parametrize("size", [len(DATA), None])
def test_a_file_is_held_until_it_is_stored(size: int | None) -> None:
    assert move(Body(DATA, size)).uploads == 0


def test_content_type_and_storage_class() -> None:
    assert move(Body(DATA, len(DATA)), MIMIC_CXR, "GLACIER_IR").kinds == {("application/dicom", "GLACIER_IR")}


@pytest.mark.parametrize("size", [len(DATA), BIG + 1, None])
def test_wrong_bytes_never_become_an_object(size: int | None) -> None:
    with pytest.raises(Corrupt):
        move(Body(b"something else", size))


@pytest.mark.parametrize("right", [True, False])
def test_a_file_too_big_for_memory_is_uploaded_while_it_comes(right: bool) -> None:
    if right:
        assert move(Body(DATA, BIG + 1)).uploads == 1
    else:
        bucket = Bucket()
        with pytest.raises(Corrupt):
            Download(Source(Body(b"other", BIG + 1)), MIMIC_CXR_JPG, bucket).fetch(FILE, ALONE)  # type: ignore[arg-type]
        assert not bucket.objects


def test_a_body_without_a_size_is_bounded() -> None:
    endless = Endless()
    with pytest.raises(NotTheFile, match="without a size"):
        Download(Source(endless), MIMIC_CXR_JPG, Bucket()).fetch(FILE, ALONE)  # type: ignore[arg-type]
    assert endless.taken <= BIG + (2 << 20)
