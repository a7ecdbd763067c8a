"""One radiograph as a model reads it: grey, smaller, its shape kept.

A JPEG is decoded at half size (DCT scaling, Pillow's draft mode) where it has `HALF_FROM` times the wanted size or more, and
reduced by an antialiased Lanczos filter. Against a full decode and Pillow's Lanczos that keeps 50 dB and more on the synthetic
radiographs and on photographs; at a quarter of the size, sharp photographs fall to 41 dB.

CPU ms a radiograph of 2,544 x 3,056 pixels and 1.5 MB to a short side of 512, decode and resize, on one core: full decode and
Pillow's Lanczos 48; half size and Pillow's 24; 3/8 by simplejpeg and Pillow's 21; half size and cykooz-resizer's 18. Some 15 of
these are the JPEG's entropy decoding, which no scaling spares; writing the small JPEG takes 0.5. cykooz-resizer (the Rust crate
fast_image_resize) is the same filter with SIMD; it has no wheel for Linux on ARM, where Pillow's own does the work.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from physionet_mirror.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Resize = Literal["short_side", "long_side", "square"]
Encoding = Literal["jpeg", "png"]

RESIZES: tuple[Resize, ...] = get_args(Resize)
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
SIZE = 32, 4096
"""The fewest and the most pixels of a side that may be asked for."""
HALF_FROM = 4.9
"""Times the wanted size from which an original is decoded at half its own. A small sharp photograph has 50.3 dB at 5.1 times
and 49.7 at 4.7; the detectors' 2,544 pixels are 4.97 times 512, at 54 dB."""
QUALITY = 1, 100
"""JPEG's qualities (source: libjpeg, jpeg_set_quality)."""


class UndecodableImage(ValueError):
    """The bytes are no image that can be decoded; the message says why, as half a sentence."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an original becomes a small copy.

    Attributes:
        size: Pixels of the side that ``resize`` names.
        resize: ``short_side``, ``long_side``, or ``square``: the long side, and black bars up to a square.
        encoding: ``jpeg`` or ``png``.
        quality: Of a JPEG; a PNG has none.

    Raises:
        InputError: A value outside these; the message names it.
    """

    size: int = 512
    resize: Resize = "short_side"
    encoding: Encoding = "jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        for name, (least, most) in (("size", SIZE), ("quality", QUALITY)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise InputError(f"{name}: {value!r} is not a whole number from {least} to {most:,}. Nothing was done.")
        for name, allowed in (("resize", RESIZES), ("encoding", ENCODINGS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: {getattr(self, name)!r} is none of {', '.join(allowed)}. Nothing was done.")

    @property
    def extension(self) -> str:
        """Of the members' names."""
        return "jpg" if self.encoding == "jpeg" else "png"

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the copy in pixels, before the bars of a square."""
        side = min(width, height) if self.resize == "short_side" else max(width, height)
        return max(1, round(width * self.size / side)), max(1, round(height * self.size / side))


@dataclass(frozen=True, slots=True)
class SmallCopy:
    """What became of an original. Sizes in pixels.

    Attributes:
        data: The encoded copy.
        width, height: Of the copy.
        original_width, original_height: Of the original.
    """

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int


def small_copy(original: bytes, recipe: Recipe) -> SmallCopy:
    """Make the small copy; the same bytes and recipe give the same copy with the same versions of the libraries.

    Raises:
        UndecodableImage: The original is damaged or no image.
    """
    image, (width, height) = reduced(original, recipe)
    out = io.BytesIO()
    if recipe.encoding == "jpeg":
        image.save(out, "JPEG", quality=recipe.quality)
    else:
        image.save(out, "PNG")
    return SmallCopy(out.getvalue(), image.width, image.height, width, height)


def reduced(original: bytes, recipe: Recipe) -> tuple[Image, tuple[int, int]]:
    """The small image before it is encoded, and the original's width and height.

    Raises:
        UndecodableImage: The original is damaged or no image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(original)) as opened:
            width, height = opened.size
            target = recipe.scaled(width, height)
            scale = 2 if min(width / target[0], height / target[1]) >= HALF_FROM else 1
            opened.draft("L", (width // scale, height // scale))  # a JPEG's luminance alone; does nothing to a PNG
            scale = round(width / opened.width)
            grey = opened.convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UndecodableImage("it is no image" if "cannot identify" in why else why) from None
    # An odd side is rounded up when it is halved: the last half pixel is none of the image.
    small = _lanczos(grey, target, (width / scale, height / scale))
    if recipe.resize == "square" and small.width != small.height:
        padded = Image.new("L", (recipe.size, recipe.size))
        padded.paste(small, ((recipe.size - small.width) // 2, (recipe.size - small.height) // 2))
        small = padded
    return small, (width, height)


def _lanczos(image: Image, size: tuple[int, int], part: tuple[float, float]) -> Image:
    """The top left ``part`` (width, height) of the image at the wanted size."""
    from PIL import Image

    try:
        import cykooz_resizer as fast
    except ImportError:
        return image.resize(size, Image.Resampling.LANCZOS, box=(0, 0, *part))
    small = Image.new("L", size)
    how = fast.ResizeOptions(
        resize_alg=fast.ResizeAlg.convolution(fast.FilterType.lanczos3), crop_box=fast.CropBox(0, 0, *part)
    )
    fast.Resizer().resize_pil(image, small, how)
    return small
