"""Turn drawn pictures into files and into data that a web page carries inside itself."""

from __future__ import annotations

import base64
import io
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from chestct.pictures import RGB

_JPEG_QUALITY: Final = 84


def to_jpeg(picture: RGB) -> bytes:
    """JPEG with full colour resolution, as thin coloured outlines need it."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def to_png(picture: RGB) -> bytes:
    """PNG; of a noisy scan the default level makes a larger file in three times the time."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=3)
    return stream.getvalue()


def to_palette_png(
    levels: UInt8[np.ndarray, "rows columns"], palette: UInt8[np.ndarray, "levels 4"]
) -> bytes:
    """PNG of palette entries (red, green, blue, opacity): a see-through layer of few kilobytes."""
    picture = Image.fromarray(levels, mode="P")
    picture.putpalette(palette[:, :3].tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG", transparency=palette[:, 3].tobytes())
    return stream.getvalue()


def to_data_uri(encoded: bytes, kind: str = "jpeg") -> str:
    """A picture as the address of itself (RFC 2397), for pages that open without a network."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"
