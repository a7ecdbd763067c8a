"""Small copies are true to the originals and of the right shape; files that are not images give none."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from demo.phantom import Findings, draw
from physionet_mirror.errors import InputError
from physionet_mirror.training.pixels import Recipe, UndecodableImage, reduced, small_copy

PHOTOGRAPH = Path(mpl.get_data_path(), "sample_data", "grace_hopper.jpg").read_bytes()
"""A real photograph, 512 x 606 pixels, in colour."""


def radiograph(rows: int, columns: int, view: str = "PA") -> bytes:
    return draw(np.random.default_rng(3), view, rows, columns, Findings(opacity=True, devices=True))


@pytest.fixture(scope="module")
def originals() -> dict[str, bytes]:
    return {
        "front": radiograph(3056, 2544),
        "side": radiograph(2539, 3050, "LATERAL"),
        "odd": radiograph(2021, 2017),
        "photograph": PHOTOGRAPH,
    }


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(float) - other.astype(float)) ** 2))
    return 10 * np.log10(255**2 / error) if error else float("inf")


@pytest.mark.parametrize("with_simd", [True, False])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, size) for name in ("front", "side", "odd") for size in (224, 512, 1024)),
        *(("photograph", size) for size in (64, 104, 128)),
    ],
)
def test_a_copy_is_within_50_db_of_a_full_decode_and_lanczos(
    originals: dict[str, bytes], name: str, size: int, with_simd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_simd:
        monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    image, original_size = reduced(originals[name], Recipe(size))
    full = Image.open(io.BytesIO(originals[name])).convert("L")
    assert original_size == full.size
    wanted = np.asarray(full.resize(image.size, Image.Resampling.LANCZOS))
    assert psnr(np.asarray(image), wanted) >= 50


@given(st.integers(1, 300), st.integers(1, 300), st.integers(32, 600))
def test_the_shape_is_kept_to_a_pixel(width: int, height: int, size: int) -> None:
    for resize, side in (("short_side", min), ("long_side", max)):
        small = Recipe(size, resize).scaled(width, height)  # type: ignore[arg-type]
        assert side(small) == size
        assert all(abs(a - b * size / side(width, height)) <= 1 for a, b in zip(small, (width, height), strict=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["jpeg", "png"]))
def test_a_square_is_square_whatever_the_original(width: int, height: int, encoding: str) -> None:
    original = io.BytesIO()
    Image.new("RGB", (width, height), (200, 200, 200)).save(original, "PNG")
    made = small_copy(original.getvalue(), Recipe(32, "square", encoding))  # type: ignore[arg-type]
    image = Image.open(io.BytesIO(made.data))
    assert (image.size, image.mode, image.format) == ((32, 32), "L", encoding.upper())
    assert (made.width, made.height, made.original_width, made.original_height) == (32, 32, width, height)
    if min(width, height) * 2 > max(width, height):  # wide enough for JPEG to hold its grey
        assert abs(int(image.getpixel((16, 16))) - 200) <= 4


def test_the_same_original_gives_the_same_bytes(originals: dict[str, bytes]) -> None:
    assert small_copy(originals["odd"], Recipe()) == small_copy(originals["odd"], Recipe())


@pytest.mark.parametrize(
    "spoilt", [b"", b"<html>maintenance</html>", PHOTOGRAPH[:200], PHOTOGRAPH[:30_000], b"\xff\xd8\xff\xe0" + bytes(99)]
)
def test_what_cannot_be_decoded_is_said_and_nothing_is_made(spoilt: bytes) -> None:
    with pytest.raises(UndecodableImage, match=r"."):
        small_copy(spoilt, Recipe(64))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"size": 0}, "size"),
        ({"size": True}, "size"),
        ({"quality": 101}, "quality"),
        ({"resize": "squash"}, "resize"),
        ({"encoding": "webp"}, "encoding"),
    ],
)
def test_a_wrong_value_is_named_before_any_work(values: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=rf"^{named}: .* Nothing was done"):
        Recipe(**values)  # type: ignore[arg-type]


def test_a_jpeg_that_simplejpeg_does_not_take_is_pillows() -> None:
    original = io.BytesIO()
    Image.new("CMYK", (640, 480), (0, 0, 0, 55)).save(original, "JPEG")
    image, _ = reduced(original.getvalue(), Recipe(96))
    assert (image.size, image.mode) == ((128, 96), "L")
    assert abs(int(image.getpixel((64, 48))) - 200) <= 2
