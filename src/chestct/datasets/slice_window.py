"""From Hounsfield units to the grey of a slice's picture, as the MASERes authors export slices.

Their Fig. 1 shows slices "from abdomen to lung view": first as a window for soft tissue shows
them, in which lungs are black, then as a lung window does. The text gives no numbers; those here
are the usual ones of radiology.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Num, UInt8

from chestct.errors import RecipeError
from chestct.lookup import look_up

WHITE: Final = 255


@dataclass(frozen=True)
class Window:
    """Which Hounsfield units become black and white.

    Attributes:
        centre_hu: Middle of the window.
        width_hu: Its width; what lies outside is black or white.

    Raises:
        RecipeError: The width is not positive.
    """

    centre_hu: float
    width_hu: float

    def __post_init__(self) -> None:
        if not 0 < self.width_hu <= 100_000:
            raise RecipeError(f"A window's width must be positive, not {self.width_hu} HU.")

    @property
    def low_hu(self) -> float:
        """What becomes black."""
        return self.centre_hu - self.width_hu / 2


WINDOWS: Final[dict[str, Window]] = {
    "lung": Window(-600.0, 1500.0),
    "abdomen": Window(40.0, 400.0),
}
"""The two views of Fig. 1 of the MASERes paper."""


def windowed(
    voxels_hu: Num[np.ndarray, "*shape"], window: str | Window = "lung"
) -> UInt8[np.ndarray, "*shape"]:
    """Grey values of 8 bits, as an export through a viewer's window gives them.

    Args:
        voxels_hu: Hounsfield units, of a slice or a whole scan.
        window: A name in `WINDOWS`, or a window of one's own.

    Raises:
        UnknownNameError: There is no such window.
    """
    chosen = look_up(WINDOWS, window, kind="window") if isinstance(window, str) else window
    share = (voxels_hu.astype(np.float32) - np.float32(chosen.low_hu)) / chosen.width_hu
    return np.asarray(np.rint(np.clip(share, 0.0, 1.0) * WHITE), dtype=np.uint8)


def abdomen_to_lung_view(
    voxels_hu: Num[np.ndarray, "*shape"],
) -> tuple[UInt8[np.ndarray, "*shape"], UInt8[np.ndarray, "*shape"]]:
    """The same slice in the soft-tissue window and in the lung window, as Fig. 1 shows it."""
    return windowed(voxels_hu, "abdomen"), windowed(voxels_hu, "lung")
