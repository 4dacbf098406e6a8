"""What the commands of `chestct dataset` that read a manifest share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.errors import ChestCTError

if TYPE_CHECKING:
    from chestct.datasets.manifest import Manifest

ManifestFile = Annotated[
    Path,
    typer.Argument(metavar="MANIFEST", help="CSV file: scan, patient, label, and more."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="A,B",
        help="The classes, in the classifier's order. Default: CAP, COVID-19 and normal.",
    ),
]


class LabelsError(ChestCTError):
    """The classes that were named on the command line are impossible."""


def read_scans(file: Path, labels: str | None, *, needs_files: bool = True) -> Manifest:
    """Read a manifest of the classes that were named.

    Args:
        file: The manifest.
        labels: What `--labels` said; None: the classes that the package knows.
        needs_files: Whether a scan that is not there is an error.

    Raises:
        LabelsError: `--labels` has an empty name or one twice.
        ManifestError: The manifest does not fit. Where its labels are unknown and none were named,
            the message names the option.
    """
    from chestct.datasets.manifest import UnknownLabelError, read_manifest

    named = () if labels is None else _named_labels(labels)
    try:
        return read_manifest(file, named, needs_files=needs_files)
    except UnknownLabelError as error:
        if named:
            raise
        msg = f"{error} If the manifest has other classes, name all its classes: --labels A,B."
        raise UnknownLabelError(msg) from error


def _named_labels(text: str) -> tuple[str, ...]:
    """The classes of "severe,mild", in this order."""
    named = tuple(name.strip() for name in text.split(","))
    if not all(named):
        msg = f"--labels '{text}' has an empty name. Put one comma between two classes: A,B."
        raise LabelsError(msg)
    twice = [name for name in named if named.count(name) > 1]
    if twice:
        raise LabelsError(f"--labels '{text}' names '{twice[0]}' twice. Name each class once.")
    return named
