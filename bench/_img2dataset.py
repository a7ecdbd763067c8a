"""CPU of img2dataset's resizer for one image, on one thread; run in an environment that has nothing else (see pixels.py).

    python bench/_img2dataset.py --image radiograph.jpg --size 512 --images 100

Prints ``{"written_ms"}``: decoding, reducing and the small JPEG of quality 95.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path


def main() -> None:
    """Command line."""
    import cv2
    from img2dataset.resizer import Resizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--images", type=int, required=True)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    data = options.image.read_bytes()
    resizer = Resizer(options.size, "keep_ratio", True, encode_quality=95, encode_format="jpg")
    made, width, height, *_, error = resizer(io.BytesIO(data))
    if error or min(width, height) != options.size or not made:
        raise SystemExit(f"it made {width} x {height}: {error}")
    begun = time.process_time()
    for _ in range(options.images):
        resizer(io.BytesIO(data))
    print(json.dumps({"written_ms": 1000 * (time.process_time() - begun) / options.images}))


if __name__ == "__main__":
    main()
