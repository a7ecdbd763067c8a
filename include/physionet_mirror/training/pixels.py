"""One radiograph as a model reads it: grey, smaller, its shape kept.

A JPEG is decoded at three eighths of its size (DCT scaling by libjpeg-turbo, through simplejpeg) where it has `REDUCED_FROM`
times the wanted size or more, and reduced by an antialiased Lanczos filter. Against a full decode and Pillow's Lanczos that
keeps 50 dB and more on the synthetic radiographs and on photographs; at a quarter of the size, sharp photographs fall to 37 dB.
docs/performance.md has what the libraries take.

simplejpeg and cykooz-resizer (the Rust crate fast_image_resize: the same filter with SIMD) let other threads run meanwhile, so
that threads use all cores. cykooz-resizer has no wheel for Linux on ARM, where Pillow's own filter does the work.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from physionet_mirror.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Buffer = bytes | memoryview
Resize = Literal["short_side", "long_side", "square"]
Encoding = Literal["jpeg", "png"]

RESIZES: tuple[Resize, ...] = get_args(Resize)
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
SIZE = 32, 4096
"""The fewest and the most pixels of a side that may be asked for."""
REDUCED_FROM = 4.9
"""Times the wanted size from which an original is decoded at three eighths of its own. A small sharp photograph has 50.8 dB
at 4.9 times and 49.8 at 4.6; the detectors' 2,544 pixels are 4.97 times 512, at 53 dB."""
CPU_SECONDS_A_GB = 15.0
"""CPU that a GB of originals takes: reading, SHA-256, decoding, reducing, encoding (docs/performance.md)."""
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


def small_copy(original: Buffer, recipe: Recipe) -> SmallCopy:
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


def reduced(original: Buffer, recipe: Recipe) -> tuple[Image, tuple[int, int]]:
    """The small image before it is encoded, and the original's width and height.

    Raises:
        UndecodableImage: The original is damaged or no image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(original)) as opened:
            width, height = opened.size
            target = recipe.scaled(width, height)
            eighths = 3 if min(width / target[0], height / target[1]) >= REDUCED_FROM else 8
            grey = _by_simplejpeg(original, width, height, eighths) if opened.format == "JPEG" else None
            if grey is None:
                eighths, grey = 8, opened.convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UndecodableImage("it is no image" if "cannot identify" in why else why) from None
    # Sides are rounded up when they are scaled: the last part of a pixel is none of the image.
    small = lanczos(grey, target, (width * eighths / 8, height * eighths / 8))
    if recipe.resize == "square" and small.width != small.height:
        padded = Image.new("L", (recipe.size, recipe.size))
        padded.paste(small, ((recipe.size - small.width) // 2, (recipe.size - small.height) // 2))
        small = padded
    return small, (width, height)


def _by_simplejpeg(original: Buffer, width: int, height: int, eighths: int) -> Image | None:
    """The luminance of a JPEG at this scale, or None of one that simplejpeg does not take: Pillow says then what it is."""
    import simplejpeg
    from PIL import Image

    least = {"min_width": width * eighths // 8, "min_height": height * eighths // 8} if eighths < 8 else {}
    try:
        pixels = simplejpeg.decode_jpeg(original, "GRAY", min_factor=1, **least)
    except ValueError:
        return None
    return Image.fromarray(pixels.reshape(pixels.shape[:2]))


def lanczos(image: Image, size: tuple[int, int], part: tuple[float, float]) -> Image:
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
