"""The recipes: one flat, frozen record per form of a paper, and how to read one from a card.

Both papers come in three forms: `paper` (what the text says), `published` (what the authors' code
does) and `recommended` (what we would use). `docs/recipes.md` sets them side by side and says
where the text is ambiguous. An ablation is `dataclasses.replace(RECIPES[name], field=value)`.

This module loads no numerical library: it is read by `chestct --help`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from chestct.errors import RecipeError
from chestct.lookup import look_up, unknown_name_message
from chestct.preprocess.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "find_recipe", "recipe_from_dict"]

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
        PluginError: It is another package's and cannot be imported.
        RecipeError: What another package brings under that name is no `Recipe`.
    """
    found: object = look_up(RECIPES, name, kind="recipe")
    if not isinstance(found, Recipe):
        msg = (
            f"The entry point '{name}' of chestct.recipes has to name a chestct.preprocess.recipe."
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
    expected = get_type_hints(Recipe)
    for field_name in values:
        if field_name not in expected:
            raise RecipeError(unknown_name_message(field_name, expected, kind="recipe field"))
    given = {name: _as_kind(name, value, expected[name]) for name, value in values.items()}
    needed = [field.name for field in fields(Recipe) if field.default is MISSING]
    missing = [field_name for field_name in needed if field_name not in given]
    if missing:
        raise RecipeError(f"The recipe lacks: {', '.join(missing)}.")
    return Recipe(**given)


def _as_kind(field_name: str, value: object, kind: Any) -> Any:
    """`value` as the field's type has it, or a RecipeError that names the field."""
    options = get_args(kind) if type(None) in get_args(kind) else (kind,)
    for option in options:
        fitting = _fitted(value, option)
        if fitting is not _NOTHING:
            return fitting
    expected = " or ".join(_described(option) for option in options)
    raise RecipeError(f"Recipe field '{field_name}' must be {expected}, not {value!r}.")


_NOTHING: Final = object()


def _fitted(value: object, kind: Any) -> Any:
    """`value` as `kind`, or `_NOTHING` where it is not of that kind."""
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else _NOTHING
    if get_origin(kind) is tuple:
        return _fitted_tuple(value, get_args(kind))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # True is an int to Python, but not a number of voxels.
    return value if type(value) is kind else _NOTHING


def _fitted_tuple(value: object, kinds: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple) or len(value) != len(kinds):
        return _NOTHING
    members = tuple(_fitted(member, kind) for member, kind in zip(value, kinds, strict=True))
    return _NOTHING if _NOTHING in members else members


def _described(kind: Any) -> str:
    """A type in words a user reads."""
    if get_origin(kind) is Literal:
        return " or ".join(f"'{name}'" for name in get_args(kind))
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} numbers"
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    return words.get(kind, "null")
