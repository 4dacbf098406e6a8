"""`chestct study`: the tables of both papers, each as one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.cli import options, study_audit, study_maseres
from chestct.cli import training_options as training
from chestct.cli.study_maseres import names_in, print_table, say_gaps, say_row
from chestct.cli.terminal import show_line

if TYPE_CHECKING:
    from chestct.studies.compare_with_paper import PaperComparison
    from chestct.studies.damage import DamageRow
    from chestct.studies.roi_ablation import Row
    from chestct.studies.row_figures import TableRow
    from chestct.studies.study_rows import Progress

app = typer.Typer(
    help="The tables of both papers, each as one command.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Study = Annotated[
    Path, typer.Option("--out", metavar="STUDY", help="Study folder: a new one, or one to go on.")
]


@app.callback()
def _study() -> None:
    """The tables of both papers, each as one command."""


app.command("audit-papers")(study_audit.audit_papers)
app.command("maseres-patients")(study_maseres.maseres_patients)
app.command("maseres-slices")(study_maseres.maseres_slices)


@app.command("roi-ablation")
def roi_ablation(
    config: training.Config,
    manifest: training.ManifestFile,
    out: Study,
    networks: Annotated[
        str | None,
        typer.Option("--networks", metavar="NAMES", help="With commas. Default: all three."),
    ] = None,
    gatings: Annotated[
        str | None,
        typer.Option("--gatings", metavar="NAMES", help="With commas. Default: none,figure."),
    ] = None,
    is_placement: Annotated[
        bool,
        typer.Option(
            "--roi-layers", help="The gates in four placements and the plain network instead."
        ),
    ] = False,
    thresholds: Annotated[
        str | None,
        typer.Option("--thresholds", metavar="T,T", help="With commas. Default: 0.6,0.7,0.8."),
    ] = None,
    overrides: training.Overrides = None,
    folds: Annotated[
        int | None,
        typer.Option("--folds", min=2, metavar="K", help="Table 6: cross-validate each row."),
    ] = None,
    processes: training.Processes = None,
    device: training.Device = "auto",
) -> None:
    """Tables 6 and 7 of the RoI-aware paper: networks by gating by t, each row trained.

    Stopped at any moment, the same command goes on; started several times at once, each takes
    rows of its own: one per GPU, with --device cuda:0, --device cuda:1, and so on.
    """
    from chestct.cli.training_lines import EpochLines, listening
    from chestct.studies import roi_ablation as study
    from chestct.studies.roi_ablation import write_ablation
    from chestct.training.distributed import choose_device
    from chestct.training.session import Plan
    from chestct.training.settings import read_settings

    placements = study.ROI_LAYERS if is_placement else study.GATINGS
    rows = study.table_rows(
        names_in(networks) or study.NETWORKS,
        names_in(gatings) or placements,
        _numbers(thresholds) or study.THRESHOLDS,
    )
    settings = read_settings(config, overrides or ())
    lines = EpochLines(settings.training.epochs, len(rows) * (folds or 1))
    with listening(processes) as listener:
        plan = Plan(settings, manifest, out, folds, listener, lines.show, choose_device(device))
        progress = study.run_ablation(plan, rows, before_row=say_row)
    _show_ablation(write_ablation(progress, out), progress, out)


@app.command()
def damage(
    classifier: Annotated[
        Path, typer.Argument(metavar="CLASSIFIER", help="Classifier folder, as train writes it.")
    ],
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="CSV file: one row per labelled scan.")
    ],
    out: Study,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="NAME", help="Only these rows: training, validation, test"),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            "--parts",
            metavar="NAMES",
            help="With commas: I to V for MASERes, else top-level modules; any module's name.",
        ),
    ] = None,
    share: Annotated[
        float, typer.Option("--share", metavar="S", help="Of each layer's units.")
    ] = 0.25,
    repeats: Annotated[
        int, typer.Option("--repeats", min=0, metavar="N", help="Random choices of units beside.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of these choices.")] = 1,
    device: options.Device = None,
    processes: training.Processes = None,
) -> None:
    """The MASERes paper's damaged models: a quarter of a part's units set to zero."""
    from chestct.classifier import load_classifier
    from chestct.cli.training_lines import listening
    from chestct.studies.damage import DamagePlan, run_damage, write_damage
    from chestct.training.judging import read_rows

    loaded = load_classifier(classifier)
    rows = read_rows(manifest, loaded, split)
    with listening(processes) as listener:
        plan = DamagePlan(
            loaded, rows, out, names_in(parts), share, repeats, seed, device, listener=listener
        )
        result = run_damage(plan)
    _show_damage(write_damage(result, out), out)


@app.command("compare-with-paper")
def compare_with_paper(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a finished training or of a roi-ablation."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Default: the run's own folder.")
    ] = None,
) -> None:
    """A run's results beside its paper's published and recomputed ones."""
    from chestct.studies.compare_with_paper import compare_with_paper as compare
    from chestct.studies.compare_with_paper import write_with_paper

    found = compare(run)
    written = write_with_paper(found, out or run)
    for each in found:
        _show_paper(each)
    for path in written:
        show_line(str(path))


def _numbers(text: str | None) -> tuple[float, ...]:
    """Values of t between commas; 80 is taken for 0.8."""
    from chestct.studies.study_rows import StudyError

    found = []
    for name in names_in(text):
        try:
            value = float(name)
        except ValueError as error:
            msg = f"'{name}' is no value of t. Give shares or per cent, such as 0.6,0.7,0.8."
            raise StudyError(msg) from error
        found.append(value / 100 if value > 1 else value)
    return tuple(found)


def _show_ablation(rows: tuple[TableRow[Row], ...], progress: Progress[Row], folder: Path) -> None:
    from chestct.evaluation.tables import format_estimate
    from chestct.labels import NOT_FOR_CLINICAL_USE

    columns = ["network", "gating", "t", "accuracy", "macro AUC"]
    lines = [
        [
            each.row.network,
            each.row.gating,
            f"{each.row.threshold:g}",
            *(format_estimate(each.figures.overall[name]) for name in ("accuracy", "macro_auc")),
        ]
        for each in rows
    ]
    print_table(columns, lines)
    say_gaps(progress)
    show_line(NOT_FOR_CLINICAL_USE)
    show_line(f"Written to {folder}")


def _show_damage(rows: tuple[DamageRow, ...], folder: Path) -> None:
    from chestct.evaluation.tables import format_estimate
    from chestct.labels import NOT_FOR_CLINICAL_USE
    from chestct.report.tables import p_value_text

    lines = [
        [
            row.name,
            f"{row.part.zeroed.total:,}" if row.part else "0",
            format_estimate(row.figures.overall["accuracy"]),
            p_value_text(row.holm),
            format_estimate(row.mean) if row.mean else "",
        ]
        for row in rows
    ]
    columns = ["part", "set to zero", "accuracy", "p (Holm)", "mean over random choices"]
    print_table(columns, lines)
    show_line(NOT_FOR_CLINICAL_USE)
    show_line(f"Written to {folder}")


def _show_paper(found: PaperComparison) -> None:
    from chestct.studies.compare_with_paper import cells

    show_line(f"{found.run}: {found.place}")
    columns = ["figure, %", "published", "recomputed", "this run", "inside"]
    print_table(columns, [cells(figure) for figure in found.figures])
    for remark in found.remarks:
        show_line(f"! {remark}")
    show_line()
