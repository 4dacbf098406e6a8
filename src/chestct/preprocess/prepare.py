"""Prepare a scan for a network: lungs, values, grid; and keep the way back to the patient.

The scan is first turned so that its axes run to the head, to the back and to the left, whatever
order they were stored in, and put upright where it is oblique; the same patient gives the same
input (bit for bit on one machine, with one engine for the lungs network).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64

from chestct.arrays import Heat, Mask, NetworkInput
from chestct.engines import AUTO
from chestct.preprocess.lungs import find_lungs
from chestct.preprocess.oblique import (
    MAX_DEGREES,
    body_grid,
    degrees_off,
    interpolated,
    on_body,
)
from chestct.preprocess.placement import (
    Placed,
    ScanLungs,
    finished_values,
    place,
    slice_area,
)
from chestct.preprocess.recipes import Recipe, find_recipe
from chestct.preprocess.resample import bounding_box, grown, mask_on_grid
from chestct.preprocess.suitability import judge_scan
from chestct.volume import Grid, Volume, to_own_axes


@dataclass(frozen=True, eq=False, repr=False)
class PreparedScan:
    """A scan as a network sees it, and where each of its voxels lies in the patient.

    Attributes:
        input: Network input, (channel, depth, height, width).
        lungs: Lung mask at the input's size, (depth, height, width).
        grid: Grid of the input in the patient. Every step of the preparation maps each axis on its
            own and linearly, so a grid is the exact map of every input voxel.
        scan_lungs: Lung mask (bool) on the scan's own grid, in the scan's own axis order.
        scan_grid: The scan's own grid.
        salient: First and last analysed slice, counted along depth of `body_grid`;
            the whole scan where the recipe has no threshold.
        lung_area: Lung share of each such slice's area, 0 to 1, from the scan's mask.
        lung_volume_l: Volume of the lung mask in litres.
        recipe: The recipe used.
        warnings: What was noticed on the way, each saying what, where and how much.
        unsuitable_reasons: Why the scan should not be classified; empty when it may.
        lungs_are_given: Whether the lungs were given and not found by the program.
        lungs_weights_sha256: Hash of the lungs network's weights; None where none was run.
        lungs_engine: What ran that network, such as "openvino float32"; None likewise.
    """

    input: NetworkInput
    lungs: Mask
    grid: Grid
    scan_lungs: Volume
    scan_grid: Grid
    salient: tuple[int, int]
    lung_area: Float64[np.ndarray, " slices"]
    lung_volume_l: float
    recipe: Recipe
    warnings: tuple[str, ...]
    unsuitable_reasons: tuple[str, ...]
    lungs_are_given: bool = False
    lungs_weights_sha256: str | None = None
    lungs_engine: str | None = None

    def __repr__(self) -> str:
        """Recipe, size of the input and lung volume on one line."""
        size = " x ".join(str(voxels) for voxels in self.input.shape)
        return f"<PreparedScan {self.recipe.name}: {size}, lungs {self.lung_volume_l:.2f} l>"

    @property
    def body_grid(self) -> Grid:
        """The scan's grid with its axes to the head, to the back and to the left."""
        return body_grid(self.scan_grid)


_LUNGS_WITHOUT_HU = "published"


def prepare(
    volume: Volume,
    recipe: Recipe | str,
    *,
    rng: np.random.Generator | None = None,
    lungs: Volume | None = None,
    engine: str = AUTO,
) -> PreparedScan:
    """Prepare a scan as a recipe says.

    Args:
        volume: Scan in any axis order; it is not changed.
        recipe: What to do: a name in `RECIPES`, one of them, or a changed one.
        rng: Where given, for training: the factors for which the recipe names a range are drawn
            from it. Without it the same scan gives the same input each time, on one machine and
            with one engine for the lungs network.
        lungs: The lungs on the scan's own grid, where they are known (`chestct.readers.masks`);
            None has them found as the recipe says.
        engine: What runs the lungs network, as in `chestct.engines.voxel_runner`.

    Returns:
        The network's input and its geometry. A scan that should not be classified is prepared
        too, with the reasons in `unsuitable_reasons`.

    Raises:
        UnknownNameError: There is no such recipe, or no such lung segmentation as it names.
        GridError: The recipe's factors make a grid too large to hold.
        NetworkError: The lungs network's files are missing or damaged.
        EngineError: The engine cannot run the lungs network.
        ValueError: The lungs given are not on the scan's own grid.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    used_recipe = recipe if rng is None else _draw_factors(recipe, rng)
    upright = _contiguous(on_body(volume))
    scan, lung_warnings = (
        _find_lungs(upright, used_recipe, engine)
        if lungs is None
        else _given_lungs(upright, lungs, volume)
    )
    placed = place(scan, used_recipe)
    lungs_at_input = _lungs_at_input(scan, placed, used_recipe)
    values = finished_values(placed.values, used_recipe, volume.unit)
    if used_recipe.placement != "factors":
        values = _with_background(values, lungs_at_input, placed, scan.volume.grid, used_recipe)
    verdict = judge_scan(scan, used_recipe)
    return PreparedScan(
        input=_as_channels(values, used_recipe.num_channels),
        lungs=lungs_at_input,
        grid=scan.volume.grid.moved(placed.start, placed.step, used_recipe.input_shape),
        scan_lungs=volume.with_voxels(_on_own_voxels(scan, volume.grid)),
        scan_grid=volume.grid,
        salient=placed.salient,
        lung_area=scan.area,
        lung_volume_l=np.count_nonzero(scan.mask) * scan.volume.grid.voxel_ml / 1000.0,
        recipe=used_recipe,
        warnings=(*_turned_words(volume.grid), *lung_warnings, *placed.warnings, *verdict.warnings),
        unsuitable_reasons=verdict.unsuitable_reasons,
        lungs_are_given=lungs is not None,
        lungs_weights_sha256=None if scan.network is None else scan.network.weights_sha256,
        lungs_engine=None if scan.network is None else scan.network.engine,
    )


def _turned_words(grid: Grid) -> tuple[str, ...]:
    """A sentence on how a scan was put upright; none where it was not."""
    degrees = degrees_off(grid)
    if degrees <= MAX_DEGREES:
        return ()
    upright = body_grid(grid)
    shape = " x ".join(str(n) for n in upright.shape)
    spacing = " x ".join(f"{s:.3g}" for s in upright.spacing_mm)
    return (
        f"The scan's axes are turned by up to {degrees:.0f} degrees from the body's: it was "
        f"interpolated onto them, {shape} voxels of {spacing} mm (depth, height, width), and "
        "slices are counted there. Maps and masks are given on the scan's own voxels.",
    )


def _draw_factors(recipe: Recipe, rng: np.random.Generator) -> Recipe:
    """The recipe with k1, k2 and the central crop drawn uniformly from its ranges."""
    drawn = {}
    for name in ("in_plane_step", "slice_step", "central_crop"):
        limits = getattr(recipe, f"{name}_range")
        if limits is not None:
            drawn[name] = float(rng.uniform(*limits))
    return replace(recipe, **drawn)  # type: ignore[arg-type]


def _as_channels(values: Heat, num_channels: int) -> NetworkInput:
    """The same values in each channel; without a copy where there is but one."""
    return np.ascontiguousarray(np.broadcast_to(values, (num_channels, *values.shape)))


def _contiguous(volume: Volume) -> Volume:
    """The volume with its voxels in memory order: slices are read whole many times."""
    return volume.with_voxels(np.ascontiguousarray(volume.voxels))


def _find_lungs(volume: Volume, recipe: Recipe, engine: str) -> tuple[ScanLungs, tuple[str, ...]]:
    """The scan's lungs, and what has to be said about how they were found."""
    method = recipe.lungs
    warnings: tuple[str, ...] = ()
    if volume.unit != "HU" and method == "recommended":
        method = _LUNGS_WITHOUT_HU
        warnings = (
            "The scan is not in Hounsfield units, so the lungs were found with the method "
            f"'{method}', which is less exact than '{recipe.lungs}'.",
        )
    found = find_lungs(volume, method, engine=engine)
    mask = found.mask
    scan = ScanLungs(volume, mask, bounding_box(mask), slice_area(mask), found.network)
    return scan, warnings


def _given_lungs(
    upright: Volume, lungs: Volume, volume: Volume
) -> tuple[ScanLungs, tuple[str, ...]]:
    """The lungs somebody else found, and a sentence that says so."""
    if lungs.grid != volume.grid:
        raise ValueError("The lungs given are not on the scan's own grid.")
    mask = np.ascontiguousarray(on_body(lungs).voxels)
    litres = np.count_nonzero(mask) * upright.grid.voxel_ml / 1000.0
    warning = f"The lungs are those of the mask that was given, {litres:.2f} litres, as they are."
    return ScanLungs(upright, mask, bounding_box(mask), slice_area(mask)), (warning,)


def _lungs_at_input(scan: ScanLungs, placed: Placed, recipe: Recipe) -> Mask:
    """The lung mask at the input's size, empty outside the slices used."""
    box = scan.box
    if box is not None:
        first, last = placed.salient
        depth = slice(max(box[0].start, first), min(box[0].stop, last + 1))
        box = (depth, box[1], box[2]) if depth.stop > depth.start else None
    return mask_on_grid(scan.mask, box, (placed.start, placed.step, recipe.input_shape))


def _with_background(values: Heat, lungs: Mask, placed: Placed, grid: Grid, recipe: Recipe) -> Heat:
    """Set the recipe's background, in place, beyond the lungs and their margin."""
    if recipe.background is None:
        return values
    depth, height, width = (
        recipe.mask_margin_mm / (step * spacing)
        for step, spacing in zip(placed.step, grid.spacing_mm, strict=True)
    )
    kept = grown(lungs, (depth, height, width))
    np.copyto(values, np.float32(recipe.background), where=~kept)
    return values


def _on_own_voxels(
    scan: ScanLungs, grid: Grid
) -> Bool[np.ndarray, "own_depth own_height own_width"]:
    """The lung mask on the scan's own grid."""
    mask = scan.mask
    if degrees_off(grid) > MAX_DEGREES:
        return interpolated(scan.volume.with_voxels(mask), grid, 0.0)
    return to_own_axes(mask, grid)
