from dataclasses import replace

import numpy as np
import pytest
from phantoms import LUNG_HU, chest, chest_grid
from scipy import ndimage

from chestct.preprocess.lungs import NetworkLungs, find_lungs
from chestct.preprocess.placement import ScanLungs, slice_area
from chestct.preprocess.recipes import RECIPES
from chestct.preprocess.resample import bounding_box
from chestct.preprocess.suitability import _coarse_chest, _orientation_faults, judge_scan
from chestct.volume import Grid, Volume, to_canonical

RECIPE = RECIPES["roi_resnet_recommended"]
TRUE_LUNGS = np.asarray(chest().voxels == LUNG_HU)


def scan_lungs(volume, mask=None, method=""):
    """The scan with a mask, with what a method finds, or with the phantom's own lungs."""
    canonical = to_canonical(volume)
    canonical = canonical.with_voxels(np.ascontiguousarray(canonical.voxels))
    network = None
    if mask is None and method:
        found = find_lungs(canonical, method)
        mask, network = found.mask, found.network
    mask = np.ascontiguousarray(canonical.voxels == LUNG_HU if mask is None else mask)
    return ScanLungs(canonical, mask, bounding_box(mask), slice_area(mask), network)


def judge(volume, mask=None, recipe=RECIPE, method=""):
    return judge_scan(scan_lungs(volume, mask, method), recipe)


def with_wrong_axes(volume, *axes):
    """The same voxels under a header that has some axes the wrong way round."""
    direction = tuple(
        tuple(-x for x in row) if axis in axes else row
        for axis, row in enumerate(volume.grid.direction)
    )
    return replace(volume, grid=replace(volume.grid, direction=direction))


@pytest.fixture(scope="module")
def scan():
    return chest()


def test_whole_chest_is_suitable(scan):
    verdict = judge(scan)
    assert verdict.unsuitable_reasons == ()
    assert verdict.warnings == ()


WRONG_WAYS = {
    "upside down": ((0,), "upside down"),
    "back to front": ((1,), "front and back"),
    "mirrored": ((2,), "left and right"),
    "feet first called head first": ((0, 2), "upside down"),
    "prone called supine": ((1, 2), "front and back"),
}


@pytest.mark.parametrize("way", WRONG_WAYS)
def test_wrong_orientation_is_unsuitable_with_the_reason(scan, way):
    axes, words = WRONG_WAYS[way]
    verdict = judge(with_wrong_axes(scan, *axes))
    assert len(verdict.unsuitable_reasons) == 1
    assert words in verdict.unsuitable_reasons[0]


def real_scan(data_folder, patient):
    """A real scan through the project's own reader, every other row and column of it."""
    from chestct.readers import read_volume

    volume = read_volume(data_folder / "covid_ct_md" / patient)
    half = np.ascontiguousarray(volume.voxels[:, ::2, ::2])
    return volume.with_voxels(half, volume.grid.moved((0, 0, 0), (1, 2, 2), half.shape))


@pytest.mark.parametrize("patient", ["P001", "normal001"])
def test_real_scans_are_suitable_and_their_wrong_orientations_are_noticed(data_folder, patient):
    volume = real_scan(data_folder, patient)
    assert judge(volume, method="recommended").unsuitable_reasons == ()
    for axes, _ in WRONG_WAYS.values():
        verdict = judge(with_wrong_axes(volume, *axes), method="recommended")
        said = (*verdict.unsuitable_reasons, *verdict.warnings)
        assert any("exchanged" in each or "upside down" in each for each in said), (axes, said)


@pytest.mark.parametrize(("name", "said"), [("chest64", ()), ("lung4d", ("Only the right lung",))])
def test_other_scanners_chests_are_not_called_wrongly_oriented(data_folder, name, said):
    from chestct.readers import read_volume

    folder = data_folder / "lung_masks"
    volume = read_volume(folder / f"{name}_ct.nii.gz")
    reasons = judge(volume, method="recommended").unsuitable_reasons
    assert tuple(reason[: len("Only the right lung")] for reason in reasons) == said


def test_head_is_unsuitable(data_folder):
    from chestct.readers import read_volume

    head = read_volume(data_folder / "dicom_gantry_tilt", allow=("tilt",))
    for method in ("recommended", "published", "paper"):
        assert judge_scan(scan_lungs(head, method=method), RECIPE).unsuitable_reasons


def test_scan_without_lungs_is_unsuitable():
    (reason,) = judge(
        chest(has_lungs=False), np.zeros(chest_grid().shape, dtype=bool)
    ).unsuitable_reasons
    assert "No lungs were found" in reason


def test_few_slices_are_unsuitable():
    few = chest(chest_grid(shape=(12, 72, 84), spacing_mm=(30.0, 4.5, 4.5)))
    lungs = np.asarray(few.voxels < -700) & (np.abs(np.indices(few.grid.shape)[1] - 36) < 19)
    assert any("12 slices" in reason for reason in judge(few, lungs).unsuitable_reasons)


@pytest.mark.parametrize(("scale", "litres"), [(0.35, "0.2"), (1.6, "1[89]|2[0-9]")])
def test_implausible_lung_volume_is_unsuitable(scan, scale, litres):
    grid = Grid(scan.grid.shape, tuple(s * scale for s in scan.grid.spacing_mm))
    lungs = TRUE_LUNGS
    reasons = judge(replace(scan, grid=grid), lungs).unsuitable_reasons
    assert any("litres" in reason for reason in reasons)
    assert litres


def test_slab_of_chest_is_unsuitable(scan):
    slab = scan.with_voxels(
        scan.voxels[30:48], scan.grid.moved((30, 0, 0), (1, 1, 1), (18, 72, 84))
    )
    mask = TRUE_LUNGS[30:48]
    assert any("90 mm" in reason for reason in judge(slab, mask).unsuitable_reasons)


def test_windowed_scan_is_unsuitable_only_where_units_are_needed(scan):
    mask = TRUE_LUNGS
    grey = (np.clip((scan.voxels + 1350.0) / 1500, 0, 1) * 255).astype(np.uint8)
    export = replace(scan, voxels=grey, unit="windowed")
    assert any("Hounsfield" in reason for reason in judge(export, mask).unsuitable_reasons)
    assert judge(export, mask, RECIPES["maseres_published"]).unsuitable_reasons == ()


def test_values_that_cannot_be_hounsfield_units_are_unsuitable(scan):
    mask = TRUE_LUNGS
    raw = scan.with_voxels((scan.voxels + 1024).astype(np.int16))
    assert any("median" in reason for reason in judge(raw, mask).unsuitable_reasons)


def test_scan_that_ends_inside_the_lungs_is_warned_of(scan):
    part = scan.with_voxels(scan.voxels[:54], scan.grid.moved((0, 0, 0), (1, 1, 1), (54, 72, 84)))
    verdict = judge(part, TRUE_LUNGS[:54])
    assert verdict.unsuitable_reasons == ()
    assert any("towards the head" in warning for warning in verdict.warnings)


@pytest.mark.parametrize("patient", ["P001", "normal001"])
def test_slice_step_that_is_halved_is_doubted_by_the_shape_of_the_lungs(data_folder, patient):
    volume = real_scan(data_folder, patient)
    depth_mm, height_mm, width_mm = volume.grid.spacing_mm
    grid = replace(volume.grid, spacing_mm=(depth_mm / 2, height_mm, width_mm))
    mask = scan_lungs(volume, method="recommended").mask
    told, halved = (
        judge(replace(volume, grid=each), mask).warnings for each in (volume.grid, grid)
    )
    shown = "mm wide: slices may lie farther apart than the headers say"
    assert not any("may be wrong" in warning or "sheared" in warning for warning in told)
    assert any(shown in warning for warning in halved)


MASKED_SCANS = {
    "chest64": "lung_masks",
    "id001": "real_scans",
    "DCM1": "real_scans",
}


def masked_scan(data_folder, name):
    """A real scan and its lungs, on canonical axes."""
    from chestct.readers import read_volume
    from chestct.readers.masks import read_lungs

    folder = data_folder / MASKED_SCANS[name]
    volume = read_volume(folder / f"{name}_ct.nii.gz")
    lungs = read_lungs(folder / f"{name}_lungs.nii.gz", volume)
    volume, lungs = to_canonical(volume), to_canonical(lungs)
    return volume, np.ascontiguousarray(lungs.voxels)


@pytest.mark.parametrize("name", MASKED_SCANS)
def test_real_scan_has_sizes_and_slices_that_are_believed(data_folder, name):
    warnings = judge(*masked_scan(data_folder, name)).warnings
    assert not any("may be wrong" in each or "sheared" in each for each in warnings)


@pytest.mark.parametrize("is_step_too", [False, True])
@pytest.mark.parametrize(
    ("name", "factor", "whose"), [("chest64", 0.7, "a child's"), ("id001", 1.3, "hardly any")]
)
def test_pixel_size_that_is_wrong_is_doubted(data_folder, name, factor, whose, is_step_too):
    volume, lungs = masked_scan(data_folder, name)
    depth_mm, height_mm, width_mm = volume.grid.spacing_mm
    step_mm = depth_mm * (factor if is_step_too else 1)
    grid = replace(volume.grid, spacing_mm=(step_mm, height_mm * factor, width_mm * factor))
    verdict = judge(replace(volume, grid=grid), lungs)
    told = (*verdict.unsuitable_reasons, *verdict.warnings)
    assert any(whose in each or "litres" in each for each in told)


@pytest.mark.parametrize("pixels", [-0.5, 0.5])
@pytest.mark.parametrize(("axis", "ways"), [(1, ("front", "back")), (2, ("right", "left"))])
@pytest.mark.parametrize("name", ["chest64", "id001"])
def test_slices_that_drift_are_doubted(data_folder, name, axis, ways, pixels):
    volume, lungs = masked_scan(data_folder, name)
    voxels, moved = np.full_like(volume.voxels, -1000), np.zeros_like(lungs)
    for index in range(len(voxels)):
        shift = [0, 0]
        shift[axis - 1] = pixels * (index - len(voxels) // 2)
        ndimage.shift(volume.voxels[index], shift, voxels[index], order=0, cval=-1000)
        moved[index] = ndimage.shift(lungs[index].astype(np.uint8), shift, order=0) > 0
    warnings = judge(volume.with_voxels(voxels), moved).warnings
    assert any(f"further to the {ways[pixels > 0]} than the last" in each for each in warnings)


@pytest.mark.parametrize(("kept", "end"), [(slice(0, 42), "head"), (slice(36, 72), "feet")])
def test_half_of_the_lungs_is_unsuitable_with_the_end_that_is_missing(scan, kept, end):
    voxels = scan.voxels[kept]
    grid = scan.grid.moved((kept.start, 0, 0), (1, 1, 1), voxels.shape)
    (reason,) = judge(scan.with_voxels(voxels, grid), TRUE_LUNGS[kept]).unsuitable_reasons
    assert f"towards the {end} the scan ends" in reason


def body_without_lungs(width_mm, bone_share):
    """A cylinder of soft tissue around a core of bone, and no lungs."""
    grid = chest_grid()
    indices = np.stack(np.indices(grid.shape), axis=-1).astype(float)
    x, y, _ = np.moveaxis(grid.to_patient(indices), -1, 0)
    from_axis = np.hypot(x, y) / (width_mm / 2)
    hu = np.where(from_axis < 1, 40.0, -1024.0)
    hu[from_axis < bone_share**0.5] = 600.0
    return Volume(grid, hu.astype(np.int16))


LOOKS = {"head": (180.0, 0.25, "head or neck"), "abdomen": (300.0, 0.02, "abdomen")}


@pytest.mark.parametrize("what", LOOKS)
def test_what_is_in_view_instead_of_a_chest_is_said(what):
    width_mm, bone_share, words = LOOKS[what]
    volume = body_without_lungs(width_mm, bone_share)
    (reason,) = judge(volume, np.zeros(volume.grid.shape, dtype=bool)).unsuitable_reasons
    assert reason.startswith("No lungs were found")
    assert words in reason


def test_the_bases_of_the_lungs_above_an_abdomen_are_named(scan):
    kept = slice(0, 24)
    voxels = scan.voxels[kept]
    volume = scan.with_voxels(voxels, scan.grid.moved((0, 0, 0), (1, 1, 1), voxels.shape))
    reasons = judge(volume, TRUE_LUNGS[kept] & (np.arange(84) < 30)).unsuitable_reasons
    assert any("upper end of an abdomen" in reason for reason in reasons)


def test_dense_tissue_and_pure_gas_in_the_mask_are_warned_of(scan):
    assert judge(scan, TRUE_LUNGS).warnings == ()
    # Some slices of the right lung, below its middle.
    near = (slice(28, 33), slice(None), slice(0, 42))
    for value, words in ((30.0, "as dense as soft tissue"), (-1010.0, "gas without tissue")):
        voxels = scan.voxels.copy()
        voxels[near][TRUE_LUNGS[near]] = value
        warnings = judge(scan.with_voxels(voxels), TRUE_LUNGS).warnings
        assert [words in warning for warning in warnings] == [True]


def said_by_network(scan, right, left, doubt):
    """What a network would say that is in doubt of so many voxels around every lung voxel."""
    lungs = np.float32(TRUE_LUNGS)
    probabilities = np.zeros((4, *lungs.shape), np.float32)
    probabilities[1] = lungs * right
    probabilities[2] = lungs * left
    if doubt:
        unsure = ndimage.binary_dilation(TRUE_LUNGS, iterations=2) & ~TRUE_LUNGS
        probabilities[2][unsure] = 0.45
    probabilities[0] = 1.0 - probabilities.sum(axis=0)
    return NetworkLungs(probabilities, scan.voxels.astype(np.float32), scan.grid)


def test_an_uncertain_outline_and_unequal_lungs_are_warned_of(scan):
    is_left = np.arange(84) >= 42
    plain = scan_lungs(scan, TRUE_LUNGS)
    told = {
        "": said_by_network(scan, ~is_left, is_left, doubt=False),
        "outline is uncertain": said_by_network(scan, ~is_left, is_left, doubt=True),
        "very unequal: the left one": said_by_network(
            scan, np.arange(84) < 60, np.arange(84) >= 60, doubt=False
        ),
    }
    for words, network in told.items():
        warnings = judge_scan(replace(plain, network=network), RECIPE).warnings
        assert [words in warning for warning in warnings] == ([True] if words else [])


@pytest.mark.parametrize(("side", "right"), [("right", 1.0), ("left", 0.0)])
def test_one_lung_alone_is_no_whole_chest_unless_a_mask_was_given(scan, side, right):
    plain = scan_lungs(scan, TRUE_LUNGS)
    network = said_by_network(scan, right, 1.0 - right, doubt=False)
    (reason,) = judge_scan(replace(plain, network=network), RECIPE).unsuitable_reasons
    assert f"Only the {side} lung was found" in reason
    assert judge_scan(plain, RECIPE).unsuitable_reasons == ()


def test_consolidation_that_passes_for_liver_is_a_doubt_and_no_refusal(scan):
    """The liver's place filled with fat and dense tissue opposite, the heart in the middle."""
    voxels = np.where(TRUE_LUNGS, -850.0, np.where(scan.voxels > 300, scan.voxels, -90.0))
    verdict = judge(scan.with_voxels(voxels.astype(np.float32)), symmetrical(TRUE_LUNGS))
    assert verdict.unsuitable_reasons == ()
    assert any("which side" in warning for warning in verdict.warnings)


def test_a_scan_without_a_back_is_a_doubt(scan):
    slab = Volume(scan.grid, np.where(TRUE_LUNGS, -850, 40).astype(np.int16))
    mask = TRUE_LUNGS & TRUE_LUNGS[:, ::-1]
    assert any("which way the back" in warning for warning in judge(slab, mask).warnings)


def symmetrical(mask):
    return mask & mask[:, :, ::-1]


def test_field_of_view_through_the_lungs_is_warned_of(scan):
    inner = scan.grid.moved((0, 0, 15), (1, 1, 1), (72, 72, 60))
    mask = np.ascontiguousarray(TRUE_LUNGS[:, :, 15:75])
    verdict = judge(scan.with_voxels(scan.voxels[:, :, 15:75], inner), mask)
    assert any("right" in warning for warning in verdict.warnings)


def test_one_lung_says_nothing_about_sides(scan):
    mask = TRUE_LUNGS.copy()
    mask[:, :, 42:] = False
    for volume in (scan, with_wrong_axes(scan, 2)):
        chest_ = _coarse_chest(volume, mask)
        assert chest_ is not None
        assert _orientation_faults(chest_) == ()


def test_lungs_alone_say_nothing_about_front_and_back(scan):
    mask = TRUE_LUNGS
    bare = Volume(scan.grid, np.where(mask, -850, 0).astype(np.int16))
    found = _coarse_chest(bare, mask)
    assert found is not None
    assert found.bone_behind is None


def test_mask_of_nothing_gives_no_chest(scan):
    assert _coarse_chest(scan, np.zeros(scan.grid.shape, dtype=bool)) is None
