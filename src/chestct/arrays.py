"""Named-axis array types. Axes are always (depth, height, width), spacing in the same order.

Stages of a scan, one word each: `voxels` (as read, Hounsfield units), `input` (scaled, what a
network sees), `batch` (several inputs), `logits`, `probabilities`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Float64, Num

Shape: TypeAlias = tuple[int, int, int]
"""Voxels along (depth, height, width)."""
Spacing: TypeAlias = tuple[float, float, float]
"""Millimetres between voxel centres along (depth, height, width)."""

Voxels: TypeAlias = Num[np.ndarray, "depth height width"] | Bool[np.ndarray, "depth height width"]
"""A scan as read, Hounsfield units when the volume says so; or a mask on a scan's grid."""
Mask: TypeAlias = Bool[np.ndarray, "depth height width"]
"""One truth value per voxel."""
Heat: TypeAlias = Float32[np.ndarray, "depth height width"]
"""Any float map on a voxel grid."""
NetworkInput: TypeAlias = Float32[np.ndarray, "channel depth height width"]
"""What a network sees of one scan, scaled as the recipe says."""
Matrix4: TypeAlias = Float64[np.ndarray, "4 4"]
"""A homogeneous transform."""
