"""Small copies: CPU of one image by library, and how true each is to a full decode with Pillow's Lanczos.

    python -m bench pixels [--short]

The radiograph is a synthetic one of 2,544 x 3,056 pixels with the grain of a detector, about 1.5 MB as JPEG; the photograph
is matplotlib's, 512 x 606 pixels, made small by as much. Each library runs in a process of its own, on one thread of a pool,
as in `mimic_cxr_training_set`: the memory of a process's main thread goes back to the system after each image, which costs
half a millisecond. *written* includes the small JPEG of quality 95. The peer is the resizer of img2dataset (OpenCV), in an
environment of its own, as it asks for other versions of what Airflow needs. The package's steps are measured by themselves
too, and the decoder at other scales: at 1/8 it reads the whole entropy code, and makes next to nothing of it. *two threads*
is what `mimic_cxr_training_set` does: reading aside, images a second on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench._measure import STATE, Check, command_line, environment, measure, python

SIZE = 512
IMAGES = 100
TARGET_MS, TARGET_DB, TARGET_RATE = 17.0, 50.0, 110.0
OURS = "simplejpeg at 3/8, cykooz-resizer (the package)"
PEER = "img2dataset's resizer"
PEERS = ("img2dataset==1.47.0", "setuptools<81")


def run(folder: Path, *, short: bool = False) -> dict[str, Any]:
    """Measure: ``{"bytes", "images", "rows": [{"library", "ms", "written_ms", "db", "photo_db"}], "steps": {name: ms}, "rate"}``."""
    folder.mkdir(parents=True, exist_ok=True)
    images = IMAGES // 10 if short else IMAGES
    radiograph = folder / "radiograph.jpg"
    radiograph.write_bytes(original())
    photograph = folder / "photograph.jpg"
    photograph.write_bytes(_photograph())

    def child(case: str) -> dict[str, Any]:
        command = [
            *python("bench.pixels"),
            "--child",
            case,
            "--images",
            str(images),
            "--folder",
            folder,
        ]
        return measure(command, environment(), folder / "child.log").json()

    rows = [{"library": case, **child(case)} for case in WAYS]
    if peer := _peer():
        words = ["--image", radiograph, "--size", str(SIZE), "--images", str(images)]
        command = [peer, Path(__file__).with_name("_img2dataset.py"), *words]
        cost = measure(command, environment({"NO_ALBUMENTATIONS_UPDATE": "1"}), folder / "peer.log")
        rows.append({"library": PEER, "ms": None, "db": None, "photo_db": None, **cost.json()})
    return {
        "bytes": radiograph.stat().st_size,
        "images": images,
        "rows": rows,
        "steps": child("steps"),
        "rate": child("two threads")["rate"],
    }


def original() -> bytes:
    """The radiograph."""
    import numpy as np
    from PIL import Image

    from demo.phantom import Findings, draw

    smooth = draw(np.random.default_rng(3), "PA", 3056, 2544, Findings(opacity=True, devices=True))
    pixels = np.asarray(Image.open(io.BytesIO(smooth)).convert("L"), dtype="float32")
    pixels = pixels + np.random.default_rng(0).normal(0, 2, pixels.shape)
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(out, "JPEG", quality=85)
    return out.getvalue()


def _photograph() -> bytes:
    import matplotlib as mpl

    return Path(mpl.get_data_path(), "sample_data", "grace_hopper.jpg").read_bytes()


def _peer() -> Path | None:
    """Python of an environment with img2dataset, made on the first call; None where it cannot be had."""
    folder = STATE / "img2dataset"
    found, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        uv = [sys.executable, "-m", "uv"]
        try:
            subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
            subprocess.run([*uv, "pip", "install", "--quiet", "--python", found, *PEERS], check=True)
        except subprocess.CalledProcessError:
            print(f"{PEER} could not be installed and is left out", file=sys.stderr)
            return None
        ready.touch()
    return found


# -- in a process of its own -------------------------------------------------------------------------------------------

Way = Callable[[bytes, int], Any]  # JPEG, wanted short side; a grey image


def _pillow(eighths: int) -> Way:
    def way(data: bytes, size: int) -> Any:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            target = _target(*image.size, size)
            image.draft("L", (image.width * eighths // 8, image.height * eighths // 8))
            return image.convert("L").resize(target, Image.Resampling.LANCZOS)

    return way


def _simplejpeg(data: bytes, size: int) -> Any:
    import simplejpeg
    from PIL import Image

    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    grey = simplejpeg.decode_jpeg(data, "GRAY", min_width=width * 3 // 8, min_height=height * 3 // 8, min_factor=1)
    part = (0, 0, width * 3 / 8, height * 3 / 8)
    return Image.fromarray(grey[:, :, 0]).resize(_target(width, height, size), Image.Resampling.LANCZOS, box=part)


def _half_and_cykooz(data: bytes, size: int) -> Any:
    from PIL import Image

    from physionet_mirror.training.pixels import lanczos

    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        image.draft("L", (width // 2, height // 2))
        return lanczos(image.convert("L"), _target(width, height, size), (width / 2, height / 2))


def _ours(data: bytes, size: int) -> Any:
    from physionet_mirror.training.pixels import Recipe, reduced

    return reduced(data, Recipe(size))[0]


WAYS: dict[str, Way] = {
    "Pillow, whole": _pillow(8),
    "Pillow at 1/2": _pillow(4),
    "Pillow at 1/4": _pillow(2),
    "Pillow at 1/2, cykooz-resizer": _half_and_cykooz,
    "simplejpeg at 3/8, Pillow's Lanczos": _simplejpeg,
    OURS: _ours,
}


def _target(width: int, height: int, size: int) -> tuple[int, int]:
    side = min(width, height)
    return round(width * size / side), round(height * size / side)


def _child(case: str, images: int, folder: Path) -> dict[str, Any]:
    radiograph, photograph = (folder / name for name in ("radiograph.jpg", "photograph.jpg"))
    data = radiograph.read_bytes()
    if case == "two threads":
        from physionet_mirror.training.pixels import Recipe, small_copy

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: small_copy(data, Recipe(SIZE)), range(10)))
            begun = time.perf_counter()
            list(pool.map(lambda _: small_copy(data, Recipe(SIZE)), range(2 * images)))
        return {"rate": 2 * images / (time.perf_counter() - begun)}
    if case == "steps":
        return _steps(data, images)
    way = WAYS[case]

    def written() -> None:
        way(data, SIZE).save(io.BytesIO(), "JPEG", quality=95)

    return {
        "ms": _ms(lambda: way(data, SIZE), images),
        "written_ms": _ms(written, images),
        "db": _psnr(way, data, SIZE),
        "photo_db": _psnr(way, photograph.read_bytes(), 103),  # 4.97 times smaller, as 512 of 2,544
    }


def _steps(data: bytes, images: int) -> dict[str, float]:
    """CPU ms of each step of ours by itself."""
    import simplejpeg
    from PIL import Image

    from physionet_mirror.training.pixels import lanczos

    height, width = simplejpeg.decode_jpeg_header(data)[:2]

    def decoded(eighths: int) -> Any:
        least = {"min_width": width * eighths // 8, "min_height": height * eighths // 8} if eighths < 8 else {}
        return simplejpeg.decode_jpeg(data, "GRAY", min_factor=1, **least)

    grey = Image.fromarray(decoded(3)[:, :, 0])

    def small() -> Image.Image:
        return lanczos(grey, _target(width, height, SIZE), (width * 3 / 8, height * 3 / 8))

    made = small()
    return {
        **{f"decode, {scale}": _ms(lambda e=e: decoded(e), images) for scale, e in SCALES.items()},  # type: ignore[misc]
        "reduce": _ms(small, images),
        "encode": _ms(lambda: made.save(io.BytesIO(), "JPEG", quality=95), images),
    }


SCALES = {"1/8": 1, "1/4": 2, "3/8": 3, "whole": 8}


def _ms(work: Callable[[], Any], images: int) -> float:
    for _ in range(5):
        work()
    begun = time.process_time()
    for _ in range(images):
        work()
    return 1000 * (time.process_time() - begun) / images


def _psnr(way: Way, data: bytes, size: int) -> float | None:
    import numpy as np
    from PIL import Image

    made = way(data, size)
    wanted = Image.open(io.BytesIO(data)).convert("L").resize(made.size, Image.Resampling.LANCZOS)
    error = float(np.mean((np.asarray(made, "float32") - np.asarray(wanted, "float32")) ** 2))
    return 10 * float(np.log10(255**2 / error)) if error else None


# -- the table ---------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""

    def figure(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    lines = [
        f"| one radiograph of {result['bytes'] / 1e6:.2f} MB to {SIZE} pixels | CPU ms | written | dB, radiograph | dB, photograph |",
        "|---|---|---|---|---|",
        *(
            f"| {row['library']} | {figure(row['ms'])} | {figure(row['written_ms'])} | "
            f"{'same' if row['ms'] and row['db'] is None else figure(row['db'])} | "
            f"{'same' if row['ms'] and row['photo_db'] is None else figure(row['photo_db'])} |"
            for row in result["rows"]
        ),
        "",
        "| the package's steps, each by itself | CPU ms |",
        "|---|---|",
        *(f"| {step} | {ms:.1f} |" for step, ms in result["steps"].items()),
        "",
        f"Two threads on two cores: {result['rate']:.0f} images a second, written.",
    ]
    return "\n".join(lines)


def checks(result: dict[str, Any]) -> list[Check]:
    """CPU of an image, its PSNR, and images a second on two cores."""
    ours = next(row for row in result["rows"] if row["library"] == OURS)
    worst = min(ours["db"], ours["photo_db"])
    return [
        Check("pixels: CPU ms, decode and resize", f"{ours['ms']:.1f}", f"{TARGET_MS:g}", ours["ms"] <= TARGET_MS),
        Check("pixels: dB", f"{worst:.1f}", f"{TARGET_DB:g}", worst >= TARGET_DB),
        Check(
            "pixels: images/s on two cores", f"{result['rate']:.0f}", f"{TARGET_RATE:g}", result["rate"] >= TARGET_RATE
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--child" in given:
        parser = argparse.ArgumentParser()
        parser.add_argument("--child", required=True)
        parser.add_argument("--images", type=int, required=True)
        parser.add_argument("--folder", type=Path, required=True)
        options = parser.parse_args(given)
        with ThreadPoolExecutor(1) as pool:
            print(json.dumps(pool.submit(_child, options.child, options.images, options.folder).result()))
        return
    command_line(__doc__, "pixels", run, table, checks, short="10 images a library", arguments=given)


if __name__ == "__main__":
    main()
