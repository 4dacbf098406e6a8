"""`chestct prepare`: what a network would see of a scan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chestct.cli import options
from chestct.cli.terminal import show_written


@options.grouped
def prepare(
    scan: Annotated[
        Path, typer.Argument(metavar="SCAN", help="Folder, file or zip of one chest CT.")
    ],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help="Recipe; see 'chestct info'.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    reading: options.Reading,
) -> None:
    """Prepare a scan and write network input and lungs as NIfTI, with a preview."""
    from chestct.preprocess.recipes import find_recipe

    chosen = find_recipe(recipe)
    options.require_scan(scan)
    said = reading.read_options()

    from chestct.pipeline import scan_name
    from chestct.preprocess.prepare import prepare as prepare_volume
    from chestct.remote import local_copy
    from chestct.writers.folders import check_folder
    from chestct.writers.preview import write_prepared

    with local_copy(scan) as place:
        check_folder(out, place)
        volume = said.read(place)
    prepared = prepare_volume(volume, chosen, lungs=said.lungs_of(volume))
    written = write_prepared(prepared, scan_name(scan), out)
    show_written(written, (*volume.warnings, *prepared.warnings, *prepared.unsuitable_reasons))
