"""Options of `chestct slices`, beside those that it shares with other trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Pictures = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Pictures: a folder per class, or COVID-CT.")
]
Manifest = Annotated[
    Path, typer.Argument(metavar="MANIFEST", help="CSV file: one row per labelled scan.")
]
SliceTable = Annotated[
    Path, typer.Option("--data", metavar="TABLE", help="CSV file: one row per labelled slice.")
]
GivenTable = Annotated[
    Path, typer.Argument(metavar="TABLE", help="CSV file: one row per labelled slice.")
]
NewTable = Annotated[Path, typer.Option("--out", metavar="CSV", help="Table to write.")]
Classifier = Annotated[
    Path, typer.Argument(metavar="CLASSIFIER", help="Folder, as 'slices train' writes it.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="ImageNet weights (.safetensors); imagenet: the hub's cache; none: random ones.",
    ),
]
Lists = Annotated[
    list[str] | None,
    typer.Option(
        "--list",
        metavar="[SPLIT:]LABEL=FILE",
        help="A text file with one picture's name per line; may be said often.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", help="Where listed pictures lie, if not FOLDER."),
]
PatientPattern = Annotated[
    str | None,
    typer.Option(
        "--patient-pattern",
        metavar="REGEX",
        help="Its group is the patient in a picture's path, such as '(p[0-9]+)-'.",
    ),
]
SliceLabels = Annotated[
    Path | None,
    typer.Option("--labels", metavar="NPY", help="COVID-CT-MD's Slice-level-labels.npy."),
]
Index = Annotated[
    Path | None, typer.Option("--index", metavar="CSV", help="COVID-CT-MD's Index.csv.")
]
WithoutLabels = Annotated[
    Literal["all", "normal"],
    typer.Option(
        "--without-labels",
        help="Scans without slice labels: take all, or those of normal patients only.",
    ),
]
Uninfected = Annotated[
    Literal["leave_out", "normal"],
    typer.Option("--uninfected", help="What slices of the ill without infection become."),
]
Window = Annotated[str, typer.Option("--window", metavar="NAME", help="lung, or abdomen.")]
Every = Annotated[
    int, typer.Option("--every", min=1, metavar="N", help="Take every N-th slice only.")
]
