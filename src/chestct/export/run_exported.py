"""Classify a chest CT with an exported classifier, without chestct.

    python run_exported.py SCAN.nii.gz --lungs LUNGS.nii.gz
    python run_exported.py --prepared FOLDER

SCAN is in Hounsfield units, LUNGS its lung mask on the same grid: finding lungs is not part of this
file. FOLDER is what `chestct prepare` writes, for every recipe; scans are prepared here by recipes
of placement "physical" and intensity "window". Needs numpy, nibabel, and onnxruntime or openvino.
"""

import argparse
import json
import math
from pathlib import Path

import nibabel
import numpy as np

HERE = Path(__file__).resolve().parent
AIR_HU = -1024.0


def _read_canonical(path):
    """Voxels as (channel, depth to the head, height to the back, width to the left), spacing."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    axes = image.affine[:3, :3]
    spacing = np.sqrt((axes**2).sum(axis=0))
    if math.degrees(math.acos(min(1.0, (np.diag(axes) / spacing).min()))) > 5.0:
        raise SystemExit(f"{path} is oblique by more than 5 degrees: use chestct prepare.")
    values = np.asarray(image.dataobj, dtype=np.float32)
    values = values[..., None] if values.ndim == 3 else values
    return values.transpose(3, 2, 1, 0)[:, :, ::-1, ::-1], spacing[::-1]


def _keys_cubic(x):
    """Cubic convolution, a = -0.5."""
    x = np.abs(x)
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1.0, (1.5 * x - 2.5) * x * x + 1.0, np.where(x < 2.0, far, 0.0))


def _table(size, start, step, new_size, kernel, reach):
    """Share of each old voxel in each new one along an axis; zeros outside the scan."""
    places = start + step * np.arange(new_size)
    at, width = np.clip(places, -0.5, size - 0.5), max(step, 1.0)
    first = np.ceil(at - reach * width).astype(int)[:, None]
    index = first + np.arange(math.ceil(2 * reach * width) + 1)
    share = kernel((at[:, None] - index) / width)
    share /= share.sum(axis=1, keepdims=True)
    index = np.mod(index, 2 * size)
    index = np.where(index >= size, 2 * size - 1 - index, index)
    shares = np.zeros((new_size, size))
    np.add.at(shares, (np.arange(new_size)[:, None], index), share)
    shares[places != at] = 0.0
    return shares.astype(np.float32)


def _resample(values, grid, kernel, reach):
    """Values on another grid: start, step and size of each axis in old voxels."""
    for axis in (1, 2, 0):
        shares = _table(values.shape[axis], *(part[axis] for part in grid), kernel, reach)
        values = np.moveaxis(np.tensordot(shares, values, (1, axis)), 0, axis)
    return values


def _grown(mask, radius):
    """A mask grown by an ellipsoid of the given radii in voxels."""
    reach = [int(each) for each in radius]
    padded = np.pad(mask, [(each, each) for each in reach])
    union = np.zeros_like(mask)
    for shift in np.ndindex(*(2 * each + 1 for each in reach)):
        away = [(s - r) / max(e, 1e-6) for s, r, e in zip(shift, reach, radius, strict=True)]
        if sum(each**2 for each in away) <= 1.0 + 1e-9:
            union |= padded[tuple(slice(s, s + n) for s, n in zip(shift, mask.shape, strict=True))]
    return union


def _prepare(scan_path, lungs_path, recipe):
    """The network's input and its lung mask, as chestct makes them of a given lung mask."""
    plain = (recipe["placement"], recipe["intensity"], recipe["kernel"])
    if plain != ("physical", "window", "cubic") or recipe["salient_threshold"] is not None:
        raise SystemExit(f"Recipe {recipe['name']} is not followed here: use chestct prepare.")
    (scan, *_), spacing = _read_canonical(scan_path)
    mask = _read_canonical(lungs_path)[0][0] > 0.5
    if mask.shape != scan.shape or not mask.any():
        raise SystemExit(f"{lungs_path} is empty or not on the grid of {scan_path}.")
    shape, wanted = np.array(recipe["input_shape"]), np.array(recipe["spacing_mm"])
    seen = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    low, high = (np.array([each[end] for each in seen]) for end in (0, -1))
    needed = (high - low + 1) * spacing + 2 * recipe["lung_margin_mm"]
    step = max(1.0, *(needed / (shape * wanted))) * wanted / spacing
    grid = ((low + high) / 2 - step * (shape - 1) / 2, step, shape)
    linear = _resample(mask.astype(np.float32), grid, lambda x: np.maximum(1.0 - np.abs(x), 0.0), 1)
    lungs = linear >= 0.5
    window_low, window_high = recipe["window_hu"]
    values = _resample(scan - AIR_HU, grid, _keys_cubic, 2) + AIR_HU
    values = np.clip((values - window_low) / (window_high - window_low), 0.0, 1.0)
    if recipe["background"] is not None:
        kept = _grown(lungs, recipe["mask_margin_mm"] / (step * spacing))
        values = np.where(kept, values, recipe["background"])
    return np.repeat(values[None].astype(np.float32), recipe["num_channels"], axis=0), lungs


def _logits_of(values, lungs):
    """What the network says; networks that do not look at the lungs have no such input."""
    given = [np.ascontiguousarray(values[None]), lungs[None, None].astype(np.float32)]
    if (HERE / "model.onnx").exists():
        import onnxruntime

        model = onnxruntime.InferenceSession(HERE / "model.onnx")
        named = zip(model.get_inputs(), given, strict=False)
        return model.run(["logits"], {each.name: array for each, array in named})[0][0]
    import openvino

    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(HERE / "model.xml", "CPU", precise)
    return model(given[: len(model.inputs)])[0][0]


def _probabilities_of(logits, config):
    """Of classes adding up to one, of findings each by itself."""
    scaled = logits.astype(np.float64) / config["temperature"]
    shares = np.exp(scaled - scaled.max())
    is_class = config["thresholds"] is None
    shares = shares / shares.sum() if is_class else 0.5 * (1.0 + np.tanh(scaled / 2.0))
    return dict(zip(config["labels"], shares.tolist(), strict=True))


def main():
    """Print the probability of every label as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scan", nargs="?", type=Path)
    parser.add_argument("--lungs", type=Path)
    parser.add_argument("--prepared", type=Path)
    said = parser.parse_args()
    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    if said.prepared is not None:
        values = _read_canonical(said.prepared / "input.nii.gz")[0]
        lungs = _read_canonical(said.prepared / "lungs.nii.gz")[0][0] > 0.5
    elif said.scan is not None and said.lungs is not None:
        values, lungs = _prepare(said.scan, said.lungs, config["recipe"])
    else:
        parser.error("give SCAN and --lungs, or --prepared")
    print(json.dumps(_probabilities_of(_logits_of(values, lungs), config)))


if __name__ == "__main__":
    main()
