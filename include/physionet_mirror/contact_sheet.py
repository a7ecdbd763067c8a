"""At most 24 thumbnails for the report. Off unless asked for: the images are restricted data, and a report travels."""

from __future__ import annotations

import io
import logging
from base64 import b64encode
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from include.physionet_mirror.destination import Bucket
    from include.physionet_mirror.verification import Verified

log = logging.getLogger(__name__)

MOST = 24
_SIDE = 160  # pixels; too small to read an annotation burnt into the image


def thumbnails(images: Sequence[Verified], bucket: Bucket, count: int = MOST) -> list[str]:
    """``data:`` URIs of small grey JPEGs of at most 24 of these images, evenly spread over them.

    An image that Pillow cannot decode (a DICOM file) is left out.
    """
    count = min(count, MOST, len(images))
    pictures = []
    for number in range(count):
        path = images[number * len(images) // count].path
        try:
            with Image.open(io.BytesIO(bucket.read(path))) as image:
                image.draft("L", (2 * _SIDE, 2 * _SIDE))
                small = image.convert("L")
            small.thumbnail((_SIDE, _SIDE))
        except (OSError, Image.DecompressionBombError) as error:
            log.info("No thumbnail of %s: %s", path, error)
            continue
        out = io.BytesIO()
        small.save(out, "JPEG", quality=70)
        pictures.append("data:image/jpeg;base64," + b64encode(out.getvalue()).decode())
    return pictures
