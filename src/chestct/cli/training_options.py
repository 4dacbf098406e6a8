"""Options that the commands for training share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="Settings, a YAML file; configs/ holds some.")
]
ManifestFile = Annotated[
    Path, typer.Option("--data", metavar="MANIFEST", help="CSV file: one row per labelled scan.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting; may be said often."),
]
Processes = Annotated[
    int | None,
    typer.Option("--processes", min=1, metavar="N", help="Scans read at once. Default: all cores."),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where to train: auto, cpu, cuda or cuda:N. auto is a CUDA GPU where there is one.",
    ),
]
