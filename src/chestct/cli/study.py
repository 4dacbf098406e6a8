"""`chestct study`: the tables of both papers, each as one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from chestct.cli import options
from chestct.cli import training_options as training
from chestct.cli.terminal import (
    EpochLines,
    listening,
    print_table,
    show_line,
    show_written,
    stdout_console,
)
from chestct.cli.workers import Workers, current_umask, trainer, worked_on
from chestct.errors import TrainingError

if TYPE_CHECKING:
    import torch

    from chestct.cluster.driver import Executor
    from chestct.studies.audit import Audit
    from chestct.studies.compare_with_paper import PaperComparison
    from chestct.studies.damage import Damaged, DamagePlan, DamageRow
    from chestct.studies.maseres import PaperTable
    from chestct.studies.study_rows import Progress, Row, TableRow
    from chestct.training.plan import Listener
    from chestct.training.session import TrainAll

app = typer.Typer(
    help="The tables of both papers, each as one command.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Study = Annotated[
    Path, typer.Option("--out", metavar="STUDY", help="Study folder: a new one, or one to go on.")
]


@app.command("audit-papers")
def _audit_papers(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write the report as HTML, Markdown and JSON here."
        ),
    ] = None,
) -> None:
    """Recompute the figures of both papers from what they publish; needs no data."""
    from chestct.studies.audit import audit_papers as recompute
    from chestct.studies.audit import write_audit

    audit = recompute()
    _show_audit(audit)
    if out is not None:
        show_written(write_audit(audit, out), [])


_TABLE_7 = (
    "Row",
    "Network",
    "RoI",
    "t",
    "Printed",
    "Recomputed, %",
    "Hits",
    "Equal",
    "Workbook",
)


def _show_audit(audit: Audit) -> None:
    """The rows of Table 7, and the main points on both papers.

    "Equal" counts the printed figures that the label files give, "Workbook" those that the labels
    inside the workbook give.
    """
    from chestct.report import Points
    from chestct.studies.audit import report_of, table_7_lines

    console = stdout_console()
    print_table(_TABLE_7, table_7_lines(audit))
    for section in report_of(audit).sections:
        points = [block for block in section.blocks if isinstance(block, Points)]
        if points:
            console.print()
            console.print(Text(section.title, style="bold"))
        for item in (item for block in points for item in block.items):
            console.print(Text(f"· {item}"), soft_wrap=True)


@dataclass(frozen=True)
class _Rows:
    """How the rows of a table are trained, and who trains them."""

    overrides: training.Overrides = None
    processes: training.Processes = None
    device: training.Device = "auto"
    workers: Workers = field(default_factory=Workers)

    @contextmanager
    def trained(self, epochs: int, num_trainings: int) -> Iterator[tuple[Listener, torch.device]]:
        """While they are trained: who is told of it, and where they are trained."""
        from chestct.training.distributed import choose_device

        with listening(self.processes, EpochLines(epochs, num_trainings)) as listener:
            yield listener, choose_device(self.device)

    def trainer(self, folder: Path) -> TrainAll:
        """What has the rows of the study in a folder trained."""
        return trainer(self.workers, folder, self.device, "Row")


def _show_end(progress: Progress, folder: Path) -> None:
    """Say which rows the table lacks, what must stand beside it, and where it is."""
    from chestct.labels import NOT_FOR_CLINICAL_USE

    for row in progress.diverged:
        show_line(f"! {row.name}: its loss is no longer a number.")
    show_line(NOT_FOR_CLINICAL_USE)
    if progress.results:
        show_line(f"Written to {folder}")


@dataclass(frozen=True)
class _Paper:
    """Which networks of the MASERes paper are trained, with what settings, and where to."""

    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Study folder: a new one, or one to go on."),
    ] = None
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="NAMES", help="Networks, with commas. Default: all."),
    ] = None
    edge: Annotated[
        int | None,
        typer.Option("--edge", min=1, metavar="N", help="Inputs of so many voxels a side instead."),
    ] = None
    configs: Annotated[
        Path | None,
        typer.Option(
            "--configs",
            metavar="DIR",
            help="Settings files, one per network. Default: those that come with chestct.",
        ),
    ] = None

    @property
    def folder(self) -> Path:
        """The study's folder.

        Raises:
            TrainingError: None was named.
        """
        if self.out is None:
            msg = "The rows need a folder: give --out DIR, a new one or one to go on."
            raise TrainingError(msg)
        return self.out


@app.command("maseres-patients")
@options.grouped
def _maseres_patients(
    paper: _Paper,
    rows: _Rows,
    manifest: Annotated[
        Path | None,
        typer.Argument(metavar="[MANIFEST]", help="CSV file: one row per labelled scan."),
    ] = None,
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
) -> None:
    """The MASERes paper's networks on volumes: MASERes, 3D-AlexNet, VoxCNN, each trained.

    Stopped at any moment, the same command goes on; without MANIFEST nothing is trained and the
    paper's own figures are shown.
    """
    from chestct.studies import maseres as study
    from chestct.studies.compare_with_paper import MASERES_NETWORKS
    from chestct.studies.study_rows import Row
    from chestct.training.plan import Plan
    from chestct.training.settings import shipped_folder

    networks = study.chosen_networks(MASERES_NETWORKS, options.names_in(paper.only))
    if manifest is None:
        _show_printed(networks)
        return
    folder = paper.folder
    files = paper.configs or shipped_folder()
    chosen = study.Chosen(files, form, tuple(rows.overrides or ()), paper.edge)
    settings = {Row(name): chosen.patient_settings(name) for name in networks}
    base = chosen.patient_settings(study.MAIN)
    trainings = len(networks) * (folds or 1)
    with rows.trained(base.training.epochs, trainings) as (listener, where):
        plan = Plan(base, manifest, folder, folds, listener, where)
        remarks = [*chosen.remarks, study.split_in_words(plan)]
        progress = study.run_patients(plan, settings, train=rows.trainer(folder))
    if progress.results:
        table = study.make_table(progress.results)
        remarks += progress.gaps
        study.write_table(folder, study.PATIENT_LEVEL, table, remarks=remarks)
        _show_rows(table)
    _show_end(progress, folder)


@app.command("maseres-slices")
@options.grouped
def _maseres_slices(
    paper: _Paper,
    rows: _Rows,
    table: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TABLE]", help="CSV file: one row per labelled slice, as 'slices list' makes."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="DIR",
            help="ImageNet weights, NETWORK.safetensors each; imagenet: the hub's cache; none: "
            "random ones.",
        ),
    ] = None,
) -> None:
    """The MASERes paper's six transfer networks on slices, each trained.

    Stopped at any moment, the same command goes on; without TABLE nothing is trained and the
    paper's own figures are shown.
    """
    from chestct.studies import maseres as study
    from chestct.studies.compare_with_paper import SLICE_NETWORKS
    from chestct.studies.study_rows import Row, run_slice_study
    from chestct.training.plan import SlicePlan
    from chestct.training.settings import shipped_folder

    networks = study.chosen_networks(SLICE_NETWORKS, options.names_in(paper.only))
    if table is None:
        _show_printed(networks)
        return
    folder = paper.folder
    files = paper.configs or shipped_folder() / "slices"
    chosen = study.Chosen(files, overrides=tuple(rows.overrides or ()), edge=paper.edge)
    settings = {Row(name): chosen.slice_settings(name, weights) for name in networks}
    base = chosen.slice_settings(next(iter(SLICE_NETWORKS)), weights)
    with rows.trained(base.training.epochs, len(networks)) as (listener, where):
        plan = SlicePlan(base, table, folder, listener=listener, device=where)
        progress = run_slice_study(plan, settings, train=rows.trainer(folder))
    if progress.results:
        made = study.make_table(progress.results)
        patients = study.make_table(study.votes_on_patients(folder, progress))
        remarks = [*chosen.slice_remarks(base), *progress.gaps]
        study.write_table(folder, study.SLICE_LEVEL, made, remarks=remarks, patients=patients)
        _show_rows(made)
    _show_end(progress, folder)


def _show_rows(table: PaperTable) -> None:
    """Each network's figures as printed, and this run's."""
    lines = []
    for row in table.rows:
        figures = [each.cells for each in table.beside(row)]
        lines += [[row.row.network, each[0], each[1], each[3]] for each in figures]
    print_table(["network", "figure, %", "printed", "this run"], lines)


def _show_printed(networks: tuple[str, ...]) -> None:
    """What the paper prints of its networks, and what its notebooks' counts give."""
    from chestct.labels import NOT_FOR_CLINICAL_USE
    from chestct.studies.compare_with_paper import (
        POSITIVE_CLASS,
        RECOMPUTED_FROM,
        maseres_printed,
    )

    lines = [
        [network, *each.cells[:3]] for network in networks for each in maseres_printed(network)
    ]
    print_table(["network", "figure, %", "printed", "recomputed"], lines)
    for remark in (POSITIVE_CLASS, RECOMPUTED_FROM, NOT_FOR_CLINICAL_USE):
        show_line(remark)
    show_line(
        "Nothing was trained, as no table of scans or slices was given. The paper's p-values, "
        "kappas and the rest, recomputed: chestct study audit-papers --out DIR"
    )


@dataclass(frozen=True)
class _Grid:
    """Which rows Tables 6 and 7 of the RoI-aware paper have."""

    networks: Annotated[
        str | None,
        typer.Option("--networks", metavar="NAMES", help="With commas. Default: all three."),
    ] = None
    gatings: Annotated[
        str | None,
        typer.Option("--gatings", metavar="NAMES", help="With commas. Default: none,figure."),
    ] = None
    is_placement: Annotated[
        bool,
        typer.Option(
            "--roi-layers", help="The gates in four placements and the plain network instead."
        ),
    ] = False
    thresholds: Annotated[
        str | None,
        typer.Option("--thresholds", metavar="T,T", help="With commas. Default: 0.6,0.7,0.8."),
    ] = None

    def rows(self) -> tuple[Row, ...]:
        """The rows, in the papers' order.

        Raises:
            UnknownNameError: There is no such network or gating.
            ChestCTError: A threshold is impossible, something is named twice, or nothing is.
        """
        from chestct.studies import roi_ablation as study

        placements = study.ROI_LAYERS if self.is_placement else study.GATINGS
        return study.table_rows(
            options.names_in(self.networks) or study.NETWORKS,
            options.names_in(self.gatings) or placements,
            _numbers(self.thresholds) or study.THRESHOLDS,
        )


@app.command("roi-ablation")
@options.grouped
def _roi_ablation(
    config: training.Config,
    manifest: training.ManifestFile,
    out: _Study,
    grid: _Grid,
    rows: _Rows,
    folds: Annotated[
        int | None,
        typer.Option("--folds", min=2, metavar="K", help="Table 6: cross-validate each row."),
    ] = None,
) -> None:
    """Tables 6 and 7 of the RoI-aware paper: networks by gating by t, each row trained.

    Stopped at any moment, the same command goes on. Rows may be trained at once, one by each of
    several workers: --workers N.
    """
    from chestct.studies import roi_ablation as study
    from chestct.training.plan import Plan
    from chestct.training.settings import read_settings

    wanted = grid.rows()
    settings = read_settings(config, rows.overrides or ())
    trainings = len(wanted) * (folds or 1)
    with rows.trained(settings.training.epochs, trainings) as (listener, where):
        plan = Plan(settings, manifest, out, folds, listener, where)
        progress = study.run_ablation(plan, wanted, train=rows.trainer(out))
    _show_ablation(study.write_ablation(progress, out))
    _show_end(progress, out)


@dataclass(frozen=True)
class _Units:
    """Which units of a network are set to zero."""

    parts: Annotated[
        str | None,
        typer.Option(
            "--parts",
            metavar="NAMES",
            help="With commas: I to V for MASERes, else top-level modules; any module's name.",
        ),
    ] = None
    share: Annotated[float, typer.Option("--share", metavar="S", help="Of each layer's units.")] = (
        0.25
    )
    repeats: Annotated[
        int, typer.Option("--repeats", min=0, metavar="N", help="Random choices of units beside.")
    ] = 0
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of these choices.")] = 1


@app.command("damage")
@options.grouped
def _damage(
    classifier: training.Judge,
    scans: training.Judged,
    out: _Study,
    units: _Units,
    workers: Workers,
    device: options.Device = None,
) -> None:
    """The MASERes paper's damaged models: a quarter of a part's units set to zero.

    Damaged networks may be judged at once, one by each of several workers: --workers N.
    """
    from chestct.classifier import load_classifier
    from chestct.studies.damage import DamagePlan, run_damage, write_damage

    executor = workers.who() if workers.is_asked_for else None
    loaded = load_classifier(classifier)
    plan = DamagePlan(
        loaded,
        scans.read(loaded),
        out,
        options.names_in(units.parts),
        units.share,
        units.repeats,
        units.seed,
        device,
    )
    with listening(scans.processes) as listener:
        elsewhere = None if executor is None else partial(_have_judged, plan, scans, executor)
        result = run_damage(replace(plan, listener=listener), elsewhere=elsewhere)
    _show_damage(write_damage(result, out), out)


def _have_judged(
    plan: DamagePlan, scans: training.Judged, executor: Executor, wanted: list[Damaged]
) -> None:
    """Have damaged networks judged by workers."""
    from chestct.cluster.driver import conclude
    from chestct.cluster.judging import DamageWork

    umask = current_umask()
    job, tasks = DamageWork.job(plan, scans.manifest, scans.split, wanted, umask=umask)
    with worked_on(job, tasks, executor, "Damaging") as done:
        conclude(done, "damaged networks")


@app.command("compare-with-paper")
def _compare_with_paper(
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
    from chestct.errors import ChestCTError

    found = []
    for name in options.names_in(text):
        try:
            value = float(name)
        except ValueError as error:
            msg = f"'{name}' is no value of t. Give shares or per cent, such as 0.6,0.7,0.8."
            raise ChestCTError(msg) from error
        found.append(value / 100 if value > 1 else value)
    return tuple(found)


def _show_ablation(rows: tuple[TableRow, ...]) -> None:
    from chestct.evaluation.report import format_estimate

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


def _show_damage(rows: tuple[DamageRow, ...], folder: Path) -> None:
    from chestct.evaluation.report import format_estimate
    from chestct.labels import NOT_FOR_CLINICAL_USE
    from chestct.report import p_value_text

    lines = [
        [
            row.name,
            f"{row.part.zeroed:,}" if row.part else "0",
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
    show_line(f"{found.run}: {found.place}")
    columns = ["figure, %", "published", "recomputed", "this run", "inside"]
    print_table(columns, [figure.cells for figure in found.figures])
    for remark in found.remarks:
        show_line(f"! {remark}")
    show_line()
