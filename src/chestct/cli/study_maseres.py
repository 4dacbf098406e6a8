"""`chestct study maseres-patients` and `maseres-slices`: the MASERes paper's tables of networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from chestct.cli import training_options as training
from chestct.cli.terminal import print_table, show_line
from chestct.errors import TrainingError

if TYPE_CHECKING:
    from chestct.studies.maseres import NetworkRow, PaperTable
    from chestct.studies.study_rows import NamedRow, Progress, RowT


def names_in(text: str | None) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def say_row(row: NamedRow) -> None:
    """Say which row is begun or gone on with."""
    show_line(f"Row {row.name}")


def say_gaps(progress: Progress[RowT]) -> None:
    """Say which rows the table lacks."""
    for row in progress.missing:
        show_line(f"! {row.name} is under way in another program.")
    for row in progress.diverged:
        show_line(f"! {row.name}: its loss is no longer a number.")


Study = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Study folder: a new one, or one to go on."),
]
Only = Annotated[
    str | None, typer.Option("--only", metavar="NAMES", help="Networks, with commas. Default: all.")
]
Edge = Annotated[
    int | None,
    typer.Option("--edge", min=1, metavar="N", help="Inputs of so many voxels a side instead."),
]
Configs = Annotated[
    Path | None,
    typer.Option(
        "--configs",
        metavar="DIR",
        help="Settings files, one per network. Default: those that come with chestct.",
    ),
]


def maseres_patients(
    manifest: Annotated[
        Path | None,
        typer.Argument(metavar="[MANIFEST]", help="CSV file: one row per labelled scan."),
    ] = None,
    out: Study = None,
    only: Only = None,
    form: Annotated[
        Literal["published", "paper"],
        typer.Option("--form", help="What the authors' notebooks do, or what the text says."),
    ] = "published",
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds",
            min=2,
            metavar="K",
            help="Cross-validate. Default: the manifest's own split, or else the paper's.",
        ),
    ] = None,
    edge: Edge = None,
    overrides: training.Overrides = None,
    configs: Configs = None,
    processes: training.Processes = None,
    device: training.Device = "auto",
) -> None:
    """The MASERes paper's networks on volumes: MASERes, 3D-AlexNet, VoxCNN, each trained.

    Stopped at any moment, the same command goes on; without MANIFEST nothing is trained and the
    paper's own figures are shown.
    """
    from chestct.studies.compare_with_paper import MASERES_NETWORKS
    from chestct.studies.maseres import chosen_networks

    networks = chosen_networks(MASERES_NETWORKS, names_in(only))
    if manifest is None:
        _show_printed(networks)
        return
    from chestct.cli.training_lines import EpochLines, listening
    from chestct.studies.maseres import (
        Chosen,
        make_table,
        patient_settings,
        run_patients,
        settings_remarks,
        split_in_words,
    )
    from chestct.studies.maseres_report import PATIENT_LEVEL, write_table
    from chestct.training.distributed import choose_device
    from chestct.training.session import Plan
    from chestct.training.settings import shipped_folder

    folder = _required(out)
    chosen = Chosen(configs or shipped_folder(), form, tuple(overrides or ()), edge)
    settings = {name: patient_settings(name, chosen) for name in networks}
    base = patient_settings(next(iter(MASERES_NETWORKS)), chosen)
    lines = EpochLines(base.training.epochs, len(networks) * (folds or 1))
    with listening(processes) as listener:
        plan = Plan(base, manifest, folder, folds, listener, lines.show, choose_device(device))
        remarks = [*settings_remarks(chosen), split_in_words(plan)]
        progress = run_patients(plan, settings, before_row=say_row)
    if progress.results:
        table = make_table(progress.results)
        write_table(folder, PATIENT_LEVEL, table, remarks=[*remarks, *progress.gaps])
        _show_rows(table)
    _show_end(progress, folder)


def maseres_slices(
    table: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TABLE]", help="CSV file: one row per labelled slice, as 'slices list' makes."
        ),
    ] = None,
    out: Study = None,
    only: Only = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="DIR",
            help="ImageNet weights, NETWORK.safetensors each; imagenet: the hub's cache; none: "
            "random ones.",
        ),
    ] = None,
    edge: Edge = None,
    overrides: training.Overrides = None,
    configs: Configs = None,
    processes: training.Processes = None,
    device: training.Device = "auto",
) -> None:
    """The MASERes paper's six transfer networks on slices, each trained.

    Stopped at any moment, the same command goes on; without TABLE nothing is trained and the
    paper's own figures are shown.
    """
    from chestct.studies.compare_with_paper import SLICE_NETWORKS
    from chestct.studies.maseres import chosen_networks

    networks = chosen_networks(SLICE_NETWORKS, names_in(only))
    if table is None:
        _show_printed(networks)
        return
    from chestct.cli.training_lines import EpochLines, listening
    from chestct.studies.maseres import (
        Chosen,
        make_table,
        run_slices,
        slice_remarks,
        slice_settings,
        votes_on_patients,
    )
    from chestct.studies.maseres_report import SLICE_LEVEL, write_table
    from chestct.training.data import SlicePlan
    from chestct.training.distributed import choose_device
    from chestct.training.settings import shipped_folder

    folder = _required(out)
    chosen = Chosen(
        configs or shipped_folder() / "slices", overrides=tuple(overrides or ()), edge=edge
    )
    settings = {name: slice_settings(name, chosen, weights) for name in networks}
    base = slice_settings(next(iter(SLICE_NETWORKS)), chosen, weights)
    lines = EpochLines(base.training.epochs, len(networks))
    with listening(processes) as listener:
        plan = SlicePlan(base, table, folder, listener=listener, device=choose_device(device))
        progress = run_slices(plan, settings, before_row=say_row, after_epoch=lines.show)
    if progress.results:
        made = make_table(progress.results)
        patients = make_table(votes_on_patients(folder, progress))
        remarks = [*slice_remarks(base, chosen), *progress.gaps]
        write_table(folder, SLICE_LEVEL, made, remarks=remarks, patients=patients)
        _show_rows(made)
    _show_end(progress, folder)


def _required(out: Path | None) -> Path:
    if out is None:
        raise TrainingError("The rows need a folder: give --out DIR, a new one or one to go on.")
    return out


def _show_rows(table: PaperTable) -> None:
    """Each network's figures as printed, and this run's."""
    from chestct.studies.compare_with_paper import cells

    lines = []
    for row in table.rows:
        figures = [cells(each) for each in table.beside(row)]
        lines += [[row.row.network, each[0], each[1], each[3]] for each in figures]
    print_table(["network", "figure, %", "printed", "this run"], lines)


def _show_end(progress: Progress[NetworkRow], folder: Path) -> None:
    from chestct.labels import NOT_FOR_CLINICAL_USE

    say_gaps(progress)
    show_line(NOT_FOR_CLINICAL_USE)
    if progress.results:
        show_line(f"Written to {folder}")


def _show_printed(networks: tuple[str, ...]) -> None:
    """What the paper prints of its networks, and what its notebooks' counts give."""
    from chestct.labels import NOT_FOR_CLINICAL_USE
    from chestct.studies.compare_with_paper import (
        POSITIVE_CLASS,
        RECOMPUTED_FROM,
        maseres_printed,
        percent,
    )

    lines = []
    for network in networks:
        for each in maseres_printed(network):
            published = "" if each.published is None else f"{100 * each.published:.4g}"
            recomputed = "" if each.recomputed is None else percent(each.recomputed)
            lines.append([network, each.figure, published, recomputed])
    print_table(["network", "figure, %", "printed", "recomputed"], lines)
    for remark in (POSITIVE_CLASS, RECOMPUTED_FROM, NOT_FOR_CLINICAL_USE):
        show_line(remark)
    show_line(
        "Nothing was trained, as no table of scans or slices was given. The paper's p-values, "
        "kappas and the rest, recomputed: chestct study audit-papers --out DIR"
    )
