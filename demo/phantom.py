"""Synthetic images that resemble chest radiographs: a few smooth shapes, ribs, vessels and noise.

The anatomy is drawn as attenuation on a coarse grid (x from -1 to 1, y from 0 at the top to 1), which keeps an image at
about 30 ms; the detector's grain is added at full size.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COARSE = 224
"""Longer side of the grid on which the anatomy is computed."""

Field = np.ndarray


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings that a phantom shows besides normal anatomy."""

    heart: bool = False
    effusion: bool = False
    opacity: bool = False
    devices: bool = False


def draw(rng: np.random.Generator, view: str, rows: int, columns: int, findings: Findings) -> bytes:
    """A grayscale JPEG of ``rows`` × ``columns`` pixels; lateral views (LATERAL, LL, …) are drawn from the side."""
    scale = min(1.0, COARSE / max(rows, columns))
    height, width = max(2, round(rows * scale)), max(2, round(columns * scale))
    y, x = np.meshgrid(
        np.linspace(0, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32), indexing="ij"
    )
    x, y = _pose(rng, x, y)
    lateral = view in ("LATERAL", "LL", "XTABLE LATERAL", "LAO", "RAO")
    attenuation = (_from_the_side if lateral else _from_the_front)(rng, x, y, findings)

    image = Image.fromarray(attenuation.astype(np.float32)).resize((columns, rows), Image.Resampling.BICUBIC)
    pixels = rng.standard_normal((rows, columns), dtype=np.float32)  # the grain
    pixels *= 5
    pixels += np.asarray(image) * np.float32(rng.normal(250, 6))
    picture = Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8))
    _mark(picture, "L" if not lateral else "")
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()


def draw_file(job: tuple[Path, Sequence[int], str, int, int, Findings]) -> str:
    """Draw into a file (file, seed, view, rows, columns, findings) and return its SHA-256 in hex."""
    file, seed, *what = job
    jpeg = draw(np.random.default_rng(seed), *what)
    file.write_bytes(jpeg)
    return hashlib.sha256(jpeg).hexdigest()


def _pose(rng: np.random.Generator, x: Field, y: Field) -> tuple[Field, Field]:
    """Varies the patient's position a little: shift, rotation and size."""
    angle, zoom, right, down = map(np.float32, (rng.normal(0, 0.025), rng.uniform(0.92, 1.08), *rng.normal(0, 0.02, 2)))
    turned = x * np.cos(angle) + (y - 0.5) * np.sin(angle)
    return (turned + right) / zoom, (y - 0.5 - x * np.sin(angle) / 2 + down) / zoom + 0.5


def _inside(distance: Field | float, soft: float) -> Field:
    """1 where ``distance`` is well below zero, 0 where it is well above, with a soft edge."""
    return 1 / (1 + np.exp(np.clip(distance / np.float32(soft), -30, 30)))


def _ellipse(x: Field, y: Field, cx: float, cy: float, rx: float, ry: float, soft: float = 0.08) -> Field:
    return _inside(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 - 1, soft)


def _band(distance: Field, width: float) -> Field:
    return np.exp(-((distance / np.float32(width)) ** 2))


def _clouds(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Field:
    """Smooth noise of about unit spread, ``cells`` blobs across."""
    total = np.zeros(shape, dtype=np.float32)
    for octave in range(3):
        size = cells * 2**octave
        small = Image.fromarray(rng.standard_normal((size, size), dtype=np.float32))
        total += np.asarray(small.resize(shape[::-1], Image.Resampling.BICUBIC)) / 1.6**octave
    return total


def _from_the_front(rng: np.random.Generator, x: Field, y: Field, findings: Findings) -> Field:
    side = np.abs(x)
    left = x > 0  # the patient's left is on the viewer's right
    breath = float(rng.uniform(-0.03, 0.03))

    neck = _inside(side - 0.2 - 0.3 * np.clip(0.1 - y, 0, 1), 0.02)
    shoulders = _inside(0.07 + 0.32 * np.clip(side - 0.18, 0, 1) ** 1.5 - y, 0.012)
    trunk = _inside(side - 0.93 + 0.08 * np.sin(3.1 * y), 0.02)
    body = np.maximum(shoulders * trunk, neck * _inside(y - 0.2, 0.05))

    # Lungs: an apex under the clavicle, bulging to the chest wall, ended below by the dome of the diaphragm.
    dome = np.where(left, np.float32(0.80 + breath), np.float32(0.76 + breath))
    dome = dome - 0.07 * np.cos((side - 0.42) * 3.4) + 0.16 * np.clip(side - 0.55, 0, 1) ** 1.2
    if findings.effusion:
        dome = dome - np.where(left == (rng.random() < 0.5), 0.22 * np.clip(side - 0.1, 0, 1), np.float32(0))
    wall = 0.30 + 0.50 * np.sqrt(np.clip((y - 0.09) / 0.62, 0, 1.2))
    lungs = (
        _inside(side - wall, 0.02) * _inside(0.12 - side, 0.03) * _inside(0.13 + 0.12 * (side - 0.3) ** 2 - y, 0.015)
    )
    lungs = lungs * _inside(y - dome, 0.010)

    wide = float(rng.uniform(1.25, 1.4) if findings.heart else rng.uniform(0.9, 1.08))
    heart = _ellipse(x - 0.55 * (y - 0.64), y, 0.14, 0.66, 0.36 * wide, 0.17 * min(wide, 1.15), 0.16)
    knob = _ellipse(x, y, 0.14, 0.34, 0.11, 0.06, 0.2)
    mediastinum = _band(x - 0.01, 0.15) * _inside(y - 0.85, 0.1)
    hila = _ellipse(side, y, 0.21, 0.48, 0.11, 0.08, 0.4)
    clouds = _clouds(rng, x.shape, 7)
    vessels = np.abs(clouds) * np.exp(-1.8 * np.hypot(side - 0.15, 1.3 * (y - 0.5)))

    spine = _band(x, 0.085) * (0.75 + 0.25 * np.cos(2 * np.pi * y * 15))
    ribs = np.zeros_like(x)
    for rib in range(9):
        behind = y - (0.13 + 0.074 * rib) + 0.10 * (1 - np.exp(-6 * side)) - 0.28 * side**2
        front = y - (0.24 + 0.078 * rib) - 0.23 * (0.85 - side)
        ribs += 0.9 * (_band(behind, 0.016) - 0.35 * _band(behind, 0.006)) + 0.4 * _band(front, 0.017) * (side > 0.3)
    cage = _inside(side - wall - 0.04, 0.02) * _inside(0.06 - side, 0.03) * _inside(0.1 - y, 0.02)
    clavicles = _band(y - 0.175 + 0.09 * side, 0.016) * _inside(side - 0.72, 0.05) * _inside(0.06 - side, 0.02)

    air = 0.52 * lungs * (1 - 0.85 * heart) * (1 - 0.8 * knob) * (1 - 0.35 * hila)
    soft_tissue = 0.60 + 0.10 * _inside(dome - y, 0.04) + 0.05 * heart + 0.16 * mediastinum - 0.10 * side**2
    image = body * (soft_tissue + 0.012 * clouds - air)
    image += body * (0.11 * spine + 0.075 * ribs * cage * (1 - 0.7 * heart) + 0.12 * clavicles)
    image += 0.10 * vessels * lungs * (1 - 0.8 * heart)
    image -= 0.16 * body * _ellipse(x, y, 0.38, 0.93, 0.2, 0.045, 0.4)  # the air bubble in the stomach
    if findings.opacity:
        cx, cy, rx, ry = rng.uniform([0.3, 0.4, 0.12, 0.06], [0.55, 0.68, 0.25, 0.12]).tolist()
        patch = _ellipse(x, y, cx * (-1) ** int(rng.integers(2)), cy, rx, ry, 0.7)
        image += 0.22 * patch * lungs * (1 - 0.8 * heart) * (1 + 0.3 * clouds)
    if findings.devices:
        image = np.maximum(image, 0.92 * _devices(rng, x, y))
    return image


def _devices(rng: np.random.Generator, x: Field, y: Field) -> Field:
    """A central line with its tip above the heart, sometimes a pacemaker."""
    path = 0.45 * np.exp(-7 * np.clip(y - 0.05, 0, 1)) * (-1) ** int(rng.integers(2)) - 0.04
    shown = _band(x - path, 0.012) * _inside(y - 0.52, 0.005)
    if rng.random() < 0.35:
        shown = np.maximum(shown, _ellipse(x, y, 0.58, 0.27, 0.11, 0.065, 0.1))
        shown = np.maximum(shown, _band(x - 0.5 + 0.9 * (y - 0.27), 0.012) * _inside(np.abs(y - 0.49) - 0.19, 0.005))
    return shown


def _from_the_side(rng: np.random.Generator, x: Field, y: Field, findings: Findings) -> Field:
    clouds = _clouds(rng, x.shape, 7)
    back = 0.78 - 0.20 * (y - 0.45) ** 2 * 4
    chest = -0.80 + 0.35 * np.clip(0.42 - y, 0, 1) ** 1.3 * 2
    body = _inside(x - back - 0.08, 0.03) * _inside(chest - x, 0.03)
    body = np.maximum(body, _inside(np.abs(x - 0.12) - 0.32, 0.04) * _inside(y - 0.2, 0.05))

    dome = 0.80 + 0.10 * np.clip(x, 0, 1) ** 2 - 0.06 * np.cos(2.4 * (x + 0.1))
    lungs = _inside(x - back + 0.22, 0.04) * _inside(chest + 0.14 - x, 0.03) * _inside(y - dome, 0.012)
    lungs = lungs * _inside(0.16 + 0.15 * np.abs(x - 0.1) ** 2 - y, 0.03)
    wide = 1.25 if findings.heart else 1.0
    heart = _ellipse(x - 0.4 * (y - 0.65), y, -0.28, 0.67, 0.27 * wide, 0.15 * wide, 0.12)
    arch = _band(np.hypot(x - 0.08, 1.6 * (y - 0.38)) - 0.18, 0.05) * _inside(y - 0.4, 0.03)
    hila = _ellipse(x, y, 0.06, 0.5, 0.13, 0.07, 0.5)

    curve = x - back + 0.13
    spine = _band(curve, 0.10) * (0.72 + 0.28 * np.cos(2 * np.pi * y * 14 + curve))
    ribs = np.zeros_like(x)
    for rib in range(10):
        arc = y - (0.10 + 0.082 * rib) - 0.16 * (0.7 - x) + 0.07 * np.sin(2.2 * x)
        ribs += _band(arc, 0.013) - 0.4 * _band(arc, 0.005)
    sternum = _band(x - chest - 0.09, 0.035) * _inside(np.abs(y - 0.42) - 0.22, 0.03)

    shade = 0.62 + 0.16 * _inside(dome - y, 0.05) + 0.14 * _inside(y - 0.27, 0.1)
    image = body * (shade + 0.012 * clouds - 0.46 * lungs * (1 - 0.75 * heart) * (1 - 0.35 * hila) * (1 - 0.4 * arch))
    vessels = np.abs(clouds) * np.exp(-2.2 * np.hypot(x - 0.05, 1.3 * (y - 0.5)))
    image += body * (0.13 * spine + 0.055 * ribs * lungs + 0.14 * sternum + 0.08 * vessels * lungs)
    if findings.effusion:
        image += 0.2 * lungs * _inside(0.72 - y + 0.2 * np.abs(x - 0.4), 0.02)
    return image


def _mark(picture: Image.Image, side: str) -> None:
    """Write the side marker of a radiograph, and the word SYNTHETIC, so that a phantom is not taken for a real one."""
    if min(picture.size) < 200:
        return
    ink, (width, height) = ImageDraw.Draw(picture), picture.size
    ink.text((width * 0.02, height * 0.01), "SYNTHETIC", fill=200, font_size=max(10, height // 50))
    if side:
        ink.text((width * 0.90, height * 0.06), side, fill=245, font_size=height // 24)
