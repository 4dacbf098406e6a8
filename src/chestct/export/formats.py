"""A classifier for use elsewhere: ONNX, OpenVINO's own format, or a folder for Hugging Face.

What is exported gives logits and pooled features of a prepared scan. The recipe goes with it, in
`config.json`, with `run_exported.py`, which runs it and does what of the recipe is possible without
chestct. Networks are exported with an input of zeros, never with a patient's.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float32

from chestct import __version__
from chestct.card import CARD_FILE
from chestct.classifier import WEIGHTS_FILE, Classifier
from chestct.engines import reason_of
from chestct.errors import EngineError, WriteError
from chestct.extras import import_extra
from chestct.familiarity import FAMILIARITY_FILE
from chestct.lookup import look_up
from chestct.report import fill_template
from chestct.storage import make_folder, write_folder_with

if TYPE_CHECKING:
    from torch import nn

CONFIG_FILE: Final = "config.json"
MODEL_CARD: Final = "README.md"
SCRIPT: Final = "run_exported.py"
_OPSET: Final = 18
_TALKATIVE: Final = "torch.onnx._internal.exporter._registration"
_LICENCES: Final = {"Apache-2.0": "apache-2.0", "MIT": "mit", "CC-BY-4.0": "cc-by-4.0"}
"""Licence to what Hugging Face calls it; any other is told in words."""


def export_classifier(classifier: Classifier, to: str, folder: str | Path) -> Path:
    """Write a classifier for use elsewhere.

    Args:
        classifier: What to export.
        to: A name in `EXPORTS`.
        folder: Where to; must not be there, or be empty, or hold an earlier export.

    Returns:
        The folder.

    Raises:
        UnknownNameError: There is no such format.
        MissingExtraError: A package that it needs is not installed.
        EngineError: The network cannot be exported.
        WriteError: Something else is in the folder, or it cannot be written.
    """
    write = look_up(EXPORTS, to, kind="format")
    target = Path(folder)
    if target.exists() and not _holds_nothing_else(target):
        raise WriteError(f"{target} exists and is no earlier export: choose another folder.")
    make_folder(target.parent)

    def _write(aside: Path) -> None:
        write(classifier, aside)
        config = json.dumps(_config(classifier, to), indent=2, ensure_ascii=False)
        (aside / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
        (aside / MODEL_CARD).write_text(_model_card(classifier, to), encoding="utf-8")

    return write_folder_with(target, _write)


def _holds_nothing_else(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    return not names or {CONFIG_FILE, MODEL_CARD} <= names


def _write_onnx(classifier: Classifier, folder: Path) -> None:
    """ONNX by way of `torch.export`; one file, its weights in it."""
    import torch

    import_extra("onnx", extra="onnx")
    import_extra("onnxscript", extra="onnx")
    # It tells of every package whose operators it could have exported too.
    logging.getLogger(_TALKATIVE).setLevel(logging.ERROR)
    size = classifier.input_size
    example = (torch.zeros(1, *size), torch.ones(1, 1, *size[1:]))
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter warns of what it does itself.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                _whole_network(classifier),
                example,
                folder / "model.onnx",
                opset_version=_OPSET,
                input_names=["scan", "lungs"],
                output_names=["logits", "features"],
                dynamo=True,
                external_data=False,
                verbose=False,
                custom_translation_table=_translations(),
            )
        except RuntimeError as error:
            msg = f"{classifier.card.network} cannot be exported to ONNX: {reason_of(error)}."
            raise EngineError(f"{msg} Take openvino.") from error
    shutil.copy(Path(__file__).with_name(SCRIPT), folder)


def _translations() -> dict[Any, Callable[..., Any]]:
    """How operators become ONNX that PyTorch's exporter does not know."""
    import torch
    from onnx.numpy_helper import from_array
    from onnxscript import opset18

    def adaptive_mean(values: Any, output_size: Sequence[int]) -> Any:
        """Adaptive average pooling in 3D: along each axis a product with a table of shares."""
        sizes = [int(size) for size in values.shape[2:]]
        for axis, size, new_size in zip("cde", sizes, output_size, strict=True):
            table = opset18.Constant(value=from_array(_pooling_table(size, int(new_size))))
            equation = f"abcde,{axis}z->{'abcde'.replace(axis, 'z')}"
            values = opset18.Einsum(values, table, equation=equation)
        return values

    pool = torch.ops.aten._adaptive_avg_pool3d.default
    return {pool: adaptive_mean}


def _pooling_table(size: int, new_size: int) -> Float32[np.ndarray, "old new"]:
    """Share of each old voxel in each new one, as PyTorch's adaptive pooling has them."""
    table = np.zeros((size, new_size), dtype=np.float32)
    for index in range(new_size):
        first, end = index * size // new_size, -(-(index + 1) * size // new_size)
        table[first:end, index] = 1.0 / (end - first)
    return table


def _write_openvino(classifier: Classifier, folder: Path) -> None:
    """OpenVINO's intermediate representation, as the engine converts it."""
    from chestct.engines.openvino_engine import convert, import_openvino

    openvino = import_openvino()
    openvino.save_model(convert(classifier), folder / "model.xml", compress_to_fp16=False)
    shutil.copy(Path(__file__).with_name(SCRIPT), folder)


def _write_hugging_face(classifier: Classifier, folder: Path) -> None:
    """The classifier's own files, as `load_classifier` takes them from a folder or a hub."""
    for name in (CARD_FILE, WEIGHTS_FILE, FAMILIARITY_FILE):
        if (classifier.folder / name).is_file():
            shutil.copyfile(classifier.folder / name, folder / name)


EXPORTS: Final[dict[str, Callable[[Classifier, Path], None]]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "hf": _write_hugging_face,
}
"""Format name to what writes it."""


def _whole_network(classifier: Classifier) -> nn.Module:
    from chestct.networks.blocks import LogitsAndFeatures

    return LogitsAndFeatures(classifier.load_network()).eval()


def _config(classifier: Classifier, to: str) -> Mapping[str, Any]:
    """What has to be known to use the export, for programs."""
    card = classifier.card
    abstention = card.abstention
    return {
        "model_type": "chestct",
        "architectures": [card.network],
        "name": card.name,
        "version": card.version,
        "format": to,
        "labels": list(card.labels),
        "id2label": dict(enumerate(card.labels)),
        "input_size": list(classifier.input_size),
        "temperature": card.temperature,
        "thresholds": card.thresholds if card.findings is not None else None,
        "abstain_below": None if abstention is None else abstention.abstain_below,
        "recipe": card.recipe,
        "network_settings": card.network_settings,
        "weights_sha256": classifier.weights_sha256,
        "exported_by": f"chestct {__version__}",
        "notice": card.notice,
    }


_BY_SCRIPT: Final = f"python {SCRIPT} SCAN.nii.gz --lungs LUNGS.nii.gz"
_USE: Final = {
    "onnx": _BY_SCRIPT,
    "openvino": _BY_SCRIPT,
    "hf": "chestct classify SCAN --classifier hf:NAME",
}


def _model_card(classifier: Classifier, to: str) -> str:
    """The card as a page, with what Hugging Face reads at its head."""
    return fill_template(
        "chestct.export/card.md.j2",
        card=classifier.card,
        licence=_LICENCES.get(classifier.card.licence, "other"),
        input_size=classifier.input_size,
        use=_USE[to],
    )
