"""`chestct export`: a classifier for use elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chestct.cli.terminal import show_line


def export(
    classifier: Annotated[
        Path, typer.Argument(metavar="CLASSIFIER", help="Classifier folder, or hf:NAME.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="onnx, openvino or hf.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write to.")],
) -> None:
    """Export a classifier to ONNX, OpenVINO or a folder for Hugging Face, with how to use it."""
    from chestct.classifier import load_classifier
    from chestct.export.formats import export_classifier

    folder = export_classifier(load_classifier(classifier), to, out)
    show_line(f"Written to {folder}: README.md says what it is and how it is used.")
