import json
import subprocess
import sys
from dataclasses import asdict, fields, replace

import pytest

from chestct.errors import RecipeError
from chestct.preprocess.recipes import RECIPES, Recipe, recipe_from_dict


def test_both_papers_come_in_three_forms():
    forms = {"paper", "published", "recommended"}
    assert set(RECIPES) == {
        f"{paper}_{form}" for paper in ("roi_resnet", "maseres") for form in forms
    }


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_carries_its_own_name(name):
    assert RECIPES[name].name == name


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_survives_a_trip_through_json(name):
    assert recipe_from_dict(json.loads(json.dumps(asdict(RECIPES[name])))) == RECIPES[name]


def test_every_field_is_documented():
    undocumented = [
        f.name for f in fields(Recipe) if f"        {f.name}: " not in (Recipe.__doc__ or "")
    ]
    assert undocumented == []


@pytest.mark.parametrize("form", ["paper", "published"])
def test_nominal_factors_are_the_middle_of_what_the_paper_draws_from(form):
    recipe = RECIPES[f"roi_resnet_{form}"]
    assert recipe.in_plane_step_range == (1.7, 2.3)
    assert recipe.slice_step_range == (0.45, 0.65)
    assert recipe.in_plane_step == pytest.approx(sum(recipe.in_plane_step_range) / 2)
    assert recipe.slice_step == pytest.approx(sum(recipe.slice_step_range) / 2)


def test_published_crop_is_the_middle_of_what_the_script_draws_from():
    recipe = RECIPES["roi_resnet_published"]
    assert recipe.central_crop_range == (0.75, 1.0)
    assert recipe.central_crop == pytest.approx(0.875)


def test_misspelt_field_is_answered_with_the_nearest_one():
    with pytest.raises(RecipeError, match=r"'spacng_mm'.*'spacing_mm'"):
        recipe_from_dict({"spacng_mm": [1, 1, 1]})


def test_missing_fields_are_named():
    with pytest.raises(RecipeError, match=r"lacks: input_shape, .*kernel"):
        recipe_from_dict({"name": "mine"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("spacing_mm", [1.0, 2.0]),
        ("spacing_mm", "1 mm"),
        ("spacing_mm", [1.0, 2.0, "3"]),
        ("input_shape", [224, 224, 224.5]),
        ("kernel", "linear"),
        ("requires_hu", 1),
        ("num_channels", True),
        ("salient_threshold", "0.8"),
        ("name", None),
        ("in_plane_step_range", {"low": 1}),
    ],
)
def test_field_of_the_wrong_kind_is_named_with_its_value(field, value):
    with pytest.raises(RecipeError, match=f"'{field}' must be .*, not "):
        recipe_from_dict({**asdict(RECIPES["roi_resnet_published"]), field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("salient_threshold", 0.0),
        ("salient_threshold", 1.01),
        ("salient_threshold", float("nan")),
        ("in_plane_step", -2.0),
        ("slice_step", 0.0),
        ("slice_step_range", (0.65, 0.45)),
        ("central_crop", 0.0),
        ("spacing_mm", (1.5, 0.0, 1.5)),
        ("input_shape", (0, 224, 224)),
        ("window_hu", (150.0, -1350.0)),
        ("saturated_share", 0.5),
        ("num_channels", 0),
    ],
)
def test_impossible_number_is_refused_with_its_field(field, value):
    with pytest.raises(RecipeError, match=f"{field} must be"):
        replace(RECIPES["roi_resnet_published"], **{field: value})


def test_area_on_the_input_needs_a_masked_factor_grid():
    with pytest.raises(RecipeError, match="salient_area"):
        replace(RECIPES["roi_resnet_published"], placement="whole")
    with pytest.raises(RecipeError, match="salient_area"):
        replace(RECIPES["roi_resnet_published"], background=None)


def test_whole_numbers_and_lists_are_taken_for_decimals_and_tuples():
    values = {**asdict(RECIPES["roi_resnet_recommended"]), "spacing_mm": [3, 3, 3]}
    assert recipe_from_dict(values).spacing_mm == (3.0, 3.0, 3.0)


def test_recipes_load_without_any_numerical_library():
    code = (
        "import sys, chestct.preprocess.recipes; "
        "print([m for m in ('numpy', 'scipy', 'torch', 'cv2', 'pydicom') if m in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"
