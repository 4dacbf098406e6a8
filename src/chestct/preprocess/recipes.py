"""The recipes: one flat, frozen record per form of a paper, and how to read one from a card.

Both papers come in three forms: `paper` (what the text says), `published` (what the authors' code
does) and `recommended` (what we would use). `docs/recipes.md` sets them side by side and says
where the text is ambiguous. An ablation is `dataclasses.replace(RECIPES[name], field=value)`.

This module loads no numerical library: it is read by `chestct --help`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from chestct.errors import RecipeError, UnknownNameError
from chestct.lookup import fields_from, look_up

Placement = Literal["factors", "whole", "physical"]
Kernel = Literal["cubic", "spline"]
GridForm = Literal["inclusive", "whole_steps"]
_Intensity = Literal["contrast", "minmax", "zscore", "window", "window_8bit"]
_AreaSource = Literal["mask", "input"]
SliceRule = Literal["span", "count"]


@dataclass(frozen=True)
class Recipe:
    """How a scan becomes a network's input.

    Attributes:
        name: Its name in `chestct.preprocess.recipes.RECIPES`, or another for a changed one.
        input_shape: Voxels of the network input along (depth, height, width).
        num_channels: Channels of the network input; all hold the same values.
        requires_hu: Whether voxels must be Hounsfield units; windowed exports (8-bit, RGB) are
            then called unsuitable.
        lungs: Name of the lung segmentation in `LUNG_METHODS`.
        intensity: How voxels become values. "minmax": linear, the scan's lowest voxel to 0, its
            highest to 1 (RoI paper Eq. 1). "contrast": the same, then each slice stretched so
            that its lowest and highest `saturated_share` saturate. "zscore": mean 0, standard
            deviation 1 over the input. "window": `window_hu` to [0, 1]. "window_8bit": `window_hu`
            to 0..255, rounded as in an 8-bit export, divided by 255 at the end.
        saturated_share: For "contrast", the share of a slice's pixels saturated at each end.
        window_hu: For "window" and "window_8bit", the values that become 0 and 1.
        background: Value of voxels outside the lungs, or None to keep what is there.
        mask_margin_mm: The lung mask is grown by this much (per axis) before the background is set,
            so that pleura and pleural lesions stay in view.
        placement: Where the input voxels lie in the scan. "factors": a grid of every `slice_step`
            slices and `in_plane_step` pixels, cut to the salient slices and the central crop, then
            resized to `input_shape` (RoI paper Eq. 2-9). "whole": the whole scan resized to
            `input_shape`. "physical": `input_shape` voxels of `spacing_mm`, centred on the lungs.
        kernel: "cubic": cubic convolution, a = -0.5 (Keys 1981), widened when an input voxel covers
            more than one old voxel, except on the grid of "factors", which is only sampled.
            "spline": interpolating cubic B-spline, first and last voxel centres kept in place.
        in_plane_step: k1 of "factors", in pixels.
        in_plane_step_range: Where training draws k1 from, or None.
        slice_step: k2 of "factors", in slices.
        slice_step_range: Where training draws k2 from, or None.
        grid_form: Of "factors". "inclusive": points 0, k, 2k, ... up to and including the size;
            those past the last voxel hold zero. "whole_steps": as many points as whole steps fit in
            the size; the last voxel is repeated past the end.
        salient_threshold: t of Algorithm 1 in (0, 1]: slices whose lung area reaches this share of
            the largest one are salient. None: all slices are used.
        salient_rule: "span": from the first to the last salient slice. "count": from the first one,
            as many slices as are salient.
        salient_area: What the area is counted on. "mask": the lung mask on the scan's slices.
            "input": voxels above zero of the resampled, masked scan.
        central_crop: Share of rows and columns kept around the centre by "factors", in (0, 1].
        central_crop_range: Where training draws the crop from, or None.
        clip_negatives: Whether values below 0, left by the cubic kernel, become 0 at the end.
        spacing_mm: Of "physical": voxel size of the input along (depth, height, width).
        lung_margin_mm: Of "physical": free space wanted around the lungs' bounding box. Lungs that
            with it do not fit are shrunk by one factor common to all axes, with a warning.

    Raises:
        RecipeError: A number is impossible or missing; the message names the field.
    """

    name: str
    input_shape: tuple[int, int, int]
    num_channels: int
    requires_hu: bool
    lungs: str
    intensity: _Intensity
    placement: Placement
    kernel: Kernel
    saturated_share: float = 0.01
    window_hu: tuple[float, float] = (-1350.0, 150.0)
    background: float | None = None
    mask_margin_mm: float = 0.0
    in_plane_step: float = 2.0
    in_plane_step_range: tuple[float, float] | None = None
    slice_step: float = 0.55
    slice_step_range: tuple[float, float] | None = None
    grid_form: GridForm = "inclusive"
    salient_threshold: float | None = None
    salient_rule: SliceRule = "span"
    salient_area: _AreaSource = "mask"
    central_crop: float = 1.0
    central_crop_range: tuple[float, float] | None = None
    clip_negatives: bool = False
    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 1.5)
    lung_margin_mm: float = 0.0

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "num_channels": (1.0, 64.0),
            "saturated_share": (0.0, 0.49),
            "mask_margin_mm": (0.0, 50.0),
            "lung_margin_mm": (0.0, 200.0),
            "in_plane_step": (0.1, 16.0),
            "slice_step": (0.05, 16.0),
            "salient_threshold": (1e-6, 1.0),
            "central_crop": (0.05, 1.0),
            "input_shape": (1.0, 1024.0),
            "spacing_mm": (0.1, 50.0),
        }
        for field_name, (low, high) in limits.items():
            self._check_between(field_name, low, high)
        for drawn in ("in_plane_step", "slice_step", "central_crop"):
            self._check_range(f"{drawn}_range", *limits[drawn])
        if self.window_hu[0] >= self.window_hu[1]:
            raise RecipeError(self._refusal("window_hu", "a lower and then a higher value"))
        if self.salient_area == "input" and self.placement != "factors":
            raise RecipeError(self._refusal("salient_area", "'mask' unless placement is 'factors'"))
        if self.salient_area == "input" and self.background != 0.0:
            raise RecipeError(self._refusal("salient_area", "'mask' unless background is 0"))

    def _check_between(self, field_name: str, low: float, high: float) -> None:
        value = getattr(self, field_name)
        numbers = value if isinstance(value, tuple) else (value,)
        # Written so that NaN is refused too.
        if value is not None and not all(low <= number <= high for number in numbers):
            raise RecipeError(self._refusal(field_name, f"between {low:g} and {high:g}"))

    def _check_range(self, field_name: str, low: float, high: float) -> None:
        self._check_between(field_name, low, high)
        drawn = getattr(self, field_name)
        if drawn is not None and drawn[0] > drawn[1]:
            raise RecipeError(self._refusal(field_name, "a lower and then a higher value"))

    def _refusal(self, field_name: str, expected: str) -> str:
        value = getattr(self, field_name)
        return f"Recipe '{self.name}': {field_name} must be {expected}, not {value!r}."


RECIPES: Final[dict[str, Recipe]] = {
    # Xue & Abhayaratne, IEEE Access 2023, as its text has it.
    "roi_resnet_paper": Recipe(
        name="roi_resnet_paper",
        input_shape=(224, 224, 224),
        num_channels=1,
        requires_hu=False,
        lungs="paper",
        intensity="minmax",
        background=0.0,
        placement="factors",
        kernel="cubic",
        in_plane_step=2.0,
        in_plane_step_range=(1.7, 2.3),
        slice_step=0.55,
        slice_step_range=(0.45, 0.65),
        grid_form="whole_steps",
        salient_threshold=0.8,
        salient_rule="count",
        salient_area="mask",
        central_crop=1.0,
        central_crop_range=(0.75, 1.0),
        clip_negatives=True,
    ),
    # The same as the authors' scripts do it.
    "roi_resnet_published": Recipe(
        name="roi_resnet_published",
        input_shape=(224, 224, 224),
        num_channels=1,
        requires_hu=False,
        lungs="published",
        intensity="contrast",
        saturated_share=0.01,
        background=0.0,
        placement="factors",
        kernel="cubic",
        in_plane_step=2.0,
        in_plane_step_range=(1.7, 2.3),
        slice_step=0.55,
        slice_step_range=(0.45, 0.65),
        grid_form="inclusive",
        salient_threshold=0.8,
        salient_rule="span",
        salient_area="input",
        central_crop=0.875,
        central_crop_range=(0.75, 1.0),
        clip_negatives=True,
    ),
    # Our own: Hounsfield units, whole lungs, millimetres. With this window the darkest lung is well
    # above 0.1, so the paper's mask from the input (Eq. 10, p = 0.1) is the lung mask.
    "roi_resnet_recommended": Recipe(
        name="roi_resnet_recommended",
        input_shape=(224, 224, 224),
        num_channels=1,
        requires_hu=True,
        lungs="recommended",
        intensity="window",
        window_hu=(-1350.0, 150.0),
        background=0.0,
        mask_margin_mm=3.0,
        placement="physical",
        kernel="cubic",
        spacing_mm=(1.5, 1.5, 1.5),
        lung_margin_mm=3.0,
    ),
    # Sadeghi et al., Scientific Reports 2024, as its text has it.
    "maseres_paper": Recipe(
        name="maseres_paper",
        input_shape=(128, 128, 128),
        num_channels=1,
        requires_hu=False,
        lungs="recommended",
        intensity="zscore",
        placement="whole",
        kernel="spline",
    ),
    # The same as the authors' notebooks do it.
    "maseres_published": Recipe(
        name="maseres_published",
        input_shape=(128, 128, 128),
        num_channels=3,
        requires_hu=False,
        lungs="recommended",
        intensity="window_8bit",
        window_hu=(-1350.0, 150.0),
        placement="whole",
        kernel="spline",
    ),
    # Our own: the lungs at a fixed physical size, their surroundings kept.
    "maseres_recommended": Recipe(
        name="maseres_recommended",
        input_shape=(128, 128, 128),
        num_channels=1,
        requires_hu=True,
        lungs="recommended",
        intensity="window",
        window_hu=(-1350.0, 150.0),
        placement="physical",
        kernel="cubic",
        spacing_mm=(2.7, 2.7, 2.7),
        lung_margin_mm=3.0,
    ),
}
"""Recipe name to recipe."""


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, ours or another package's.

    Raises:
        UnknownNameError: There is no such recipe; the message offers the nearest name.
        ChestCTError: It is another package's and cannot be imported.
        RecipeError: What another package brings under that name is no `Recipe`.
    """
    found: object = look_up(RECIPES, name, kind="recipe")
    if not isinstance(found, Recipe):
        msg = (
            f"The entry point '{name}' of chestct.recipes has to name a chestct.preprocess.recipes."
            f"Recipe, not a {type(found).__name__}: tell the authors of its package."
        )
        raise RecipeError(msg)
    return found


def recipe_from_dict(values: Mapping[str, object]) -> Recipe:
    """Make a recipe from plain values, such as those of a classifier's card.

    `dataclasses.asdict` is the inverse. Lists are taken for tuples and whole numbers for decimals,
    as JSON and YAML make no difference.

    Raises:
        RecipeError: A field is unknown (the nearest one is named), missing, of the wrong kind or
            impossible.
    """
    try:
        return fields_from(Recipe, values, what="Recipe field", error=RecipeError)
    except UnknownNameError as error:
        raise RecipeError(str(error)) from None
