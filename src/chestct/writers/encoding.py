"""Turn drawn pictures into files and into data that a web page carries inside itself."""

from __future__ import annotations

import base64
import io
from typing import Final

from PIL import Image

from chestct.pictures import RGB

_JPEG_QUALITY: Final = 84


def to_jpeg(picture: RGB) -> bytes:
    """JPEG with full colour resolution, as thin coloured outlines need it."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def to_png(picture: RGB) -> bytes:
    """PNG; Pillow's `optimize` would save a tenth of the size for twice the time."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def to_data_uri(jpeg: bytes) -> str:
    """A JPEG as the address of itself (RFC 2397), for pages that open without a network."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
