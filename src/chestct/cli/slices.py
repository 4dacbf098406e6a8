"""`chestct slices`: networks that see one slice at a time, from pictures to patients."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from chestct.cli import training_options as options
from chestct.cli.options import grouped
from chestct.cli.terminal import (
    EpochLines,
    listening,
    show_document,
    show_error,
    show_line,
    show_summary,
)
from chestct.cli.train import suggest_rate
from chestct.errors import TrainingError

if TYPE_CHECKING:
    from chestct.api import ClassifiedSlices
    from chestct.datasets.manifest import Manifest
    from chestct.datasets.pictures import Extraction
    from chestct.training.plan import SlicePlan

_MOST_SHOWN: Final = 5
"""Failures that are said one by one."""

Pictures = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Pictures: a folder per class, or COVID-CT.")
]
ScanTable = Annotated[
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
        help="File of ImageNet weights; imagenet: the hub's cache; none: random ones.",
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
Classes = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="A,B|YAML",
        help="The classes: names, or a YAML file with 'labels:', which names the negative one.",
    ),
]


app = typer.Typer(
    help="Networks that see one slice at a time: from pictures to patients.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("list")
def _list_slices(
    folder: Pictures,
    out: NewTable,
    lists: Lists = None,
    images: Images = None,
    patient_pattern: PatientPattern = None,
) -> None:
    """Make a table of the slices of a folder, one row per picture."""
    from chestct.datasets.manifest import write_manifest
    from chestct.datasets.public import scan_slice_folder

    found = scan_slice_folder(
        folder, patient_pattern=patient_pattern, lists=lists or (), images=images
    )
    with listening(None) as listener:
        for note in found.notes:
            listener.note(note)
    write_manifest(found.manifest, out)
    _say_written(found.manifest, out)


@dataclass(frozen=True)
class _Truth:
    """What is known of single slices, and what becomes of scans of which nothing is."""

    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="NPY", help="COVID-CT-MD's Slice-level-labels.npy."),
    ] = None
    index: Annotated[
        Path | None, typer.Option("--index", metavar="CSV", help="COVID-CT-MD's Index.csv.")
    ] = None
    without_labels: Annotated[
        Literal["all", "negative", "normal"],
        typer.Option(
            "--without-labels",
            help="Scans without slice labels: take all, or those of the negative class ('normal').",
        ),
    ] = "negative"
    uninfected: Annotated[
        Literal["leave_out", "negative", "normal"],
        typer.Option("--uninfected", help="What slices of the ill without infection become."),
    ] = "leave_out"

    def extraction(self, window: str, every: int, negative: str) -> Extraction:
        """Which slices are taken, in which window, by what is known of them.

        Raises:
            TrainingError: Labels were given without their index, or the other way round.
        """
        from chestct.datasets.pictures import Extraction, read_slice_labels

        if (self.labels is None) != (self.index is None):
            raise TrainingError("--labels and --index belong together: give both, or neither.")
        return Extraction(
            read_slice_labels(self.labels, self.index) if self.labels and self.index else {},
            "all" if self.without_labels == "all" else "negative",
            "leave_out" if self.uninfected == "leave_out" else "negative",
            window,
            every,
            negative,
        )


@app.command("extract")
@grouped
def _extract(
    manifest: ScanTable,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="New folder for pictures and slices.csv.")
    ],
    truth: _Truth,
    window: Annotated[
        str, typer.Option("--window", metavar="NAME", help="lung, or abdomen.")
    ] = "lung",
    every: Annotated[
        int, typer.Option("--every", min=1, metavar="N", help="Take every N-th slice only.")
    ] = 1,
    classes: Classes = None,
) -> None:
    """Write the slices of labelled scans as pictures, with a table of them."""
    from chestct.datasets.manifest import read_manifest, write_manifest
    from chestct.datasets.pictures import extract_slices

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is not empty. Choose a new folder.")
    named = options.named_labels(classes)
    extraction = truth.extraction(window, every, "" if named is None else named.negative)
    names = () if named is None else named.names
    scans = read_manifest(manifest, names, are_findings=False)
    with listening(None) as listener:
        found = extract_slices(scans, extraction, out, told=listener.note)
    table = write_manifest(found, out / "slices.csv")
    _say_written(found, table)


@app.command("train")
@grouped
def _train(
    training: options.Training,
    table: SliceTable,
    out: options.RunFolder,
    weights: Weights = None,
) -> None:
    """Train a slice network and vote on patients; stopped, the same command goes on."""
    from chestct.training.session import run_slice_training

    plan = _plan(training, weights, table, out)
    lines = EpochLines(plan.settings.training.epochs, plan.settings.num_members)
    with listening(training.processes, lines) as listener:
        summary = run_slice_training(replace(plan, listener=listener))
    show_summary(summary, out)


@app.command("lr-range")
@grouped
def _lr_range(
    training: options.Training,
    table: SliceTable,
    out: options.RangeFolder,
    test: options.RangeTest,
    weights: Weights = None,
) -> None:
    """Train while the learning rate rises, draw the loss, suggest a rate."""
    test.require_one_form()
    suggest_rate(_plan(training, weights, table, out), test, training.processes)


@app.command("evaluate")
def _evaluate(
    classifier: Classifier,
    table: GivenTable,
    out: options.EvaluationFolder,
    beside: options.Beside = None,
    maseres_z: options.MaseresZ = False,
    processes: options.Processes = None,
) -> None:
    """Classify labelled slices, vote on their patients, write figures with intervals."""
    from chestct.evaluation.comparisons import COMPARISONS, SOUND
    from chestct.training.judging import evaluate_slices

    others, tests = options.named_files(beside), tuple(COMPARISONS) if maseres_z else SOUND
    with listening(processes) as listener:
        summary = evaluate_slices(classifier, table, out, listener, others, comparisons=tests)
    show_summary(summary, out)


@app.command("classify")
def _classify(
    classifier: Classifier,
    pictures: Annotated[
        list[Path],
        typer.Argument(
            metavar="PICTURES",
            help="Slices that nobody has labelled: PNG, JPEG or TIFF files, folders of them, or a "
            "CSV file with a column 'scan' and perhaps 'patient'.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for answers.csv, patients.csv, failures.csv and index.html.",
        ),
    ],
    patient_pattern: PatientPattern = None,
    vote: Annotated[
        str,
        typer.Option(
            "--vote",
            metavar="NAME",
            help="How slices say what their patient has: mean, max, share or attention.",
        ),
    ] = "mean",
    processes: options.Processes = None,
) -> None:
    """Classify slices that nobody has labelled, and vote on the patients who are known."""
    from chestct.api import classify_slices

    with listening(processes) as listener:
        found = classify_slices(
            classifier,
            pictures,
            out,
            vote=vote,
            patient_pattern=patient_pattern,
            listener=listener,
        )
    _show_answers(found, out)
    num_failed = sum(bool(each.failure) for each in found.slices)
    if num_failed:
        raise typer.Exit(2 if num_failed == len(found.slices) else 1)


def _show_answers(found: ClassifiedSlices, out: Path) -> None:
    """How many slices and patients are of which class, and what had no answer."""
    from chestct.labels import NOT_FOR_CLINICAL_USE
    from chestct.result import likeliest

    failed = [each for each in found.slices if each.failure]
    for each in failed[:_MOST_SHOWN]:
        show_error(f"{each.picture}: {each.failure}")
    if len(failed) > _MOST_SHOWN:
        show_error(f"{len(failed)} slices have no answer, all of them in failures.csv.")
    answered = [each for each in found.slices if not each.failure]
    for what, answers in (("slices", answered), ("patients", found.patients)):
        counts = Counter(likeliest(each.probabilities) for each in answers)
        if counts:
            cases = ", ".join(f"{num} {label}" for label, num in counts.most_common())
            show_line(f"{counts.total()} {what}: {cases}")
    num_remarked = sum(bool(each.warnings) for each in answered)
    if num_remarked:
        show_line(f"! {num_remarked} answers have warnings, in answers.csv.")
    show_line(NOT_FOR_CLINICAL_USE)
    show_line(f"Written to {out}")


@app.command("explain")
def _explain(
    classifier: Classifier,
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A slice: PNG, JPEG or TIFF.")],
    out: Annotated[Path, typer.Option("--out", metavar="PNG", help="Picture to write.")],
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="NAME", help="Class to explain. Default: the likeliest."),
    ] = None,
) -> None:
    """Show where in a slice the network saw a class (Grad-CAM)."""
    from chestct.classifier import load_slice_classifier
    from chestct.labels import NOT_FOR_CLINICAL_USE
    from chestct.writers.preview import explain_picture

    explained = explain_picture(load_slice_classifier(classifier), picture, out, label)
    for name, share in explained.probabilities.items():
        show_line(f"{name}  {share:.1%}")
    for warning in explained.warnings:
        show_line(f"! {warning}")
    show_line(f"{out} shows what spoke for {explained.label}")
    show_line(NOT_FOR_CLINICAL_USE)


def _say_written(slices: Manifest, table: Path) -> None:
    """How many slices of whom a table holds, and where it is."""
    cases = ", ".join(f"{count} {label}" for label, count in slices.cases.items())
    show_line(f"{len(slices)} slices of {slices.num_patients} patients ({cases})")
    show_document(str(table))


def _plan(training: options.Training, weights: str | None, table: Path, out: Path) -> SlicePlan:
    """What is to be trained, with the weights of the command line."""
    from chestct.training.distributed import choose_device, require_one_process
    from chestct.training.plan import SlicePlan
    from chestct.training.settings import SliceRunSettings

    require_one_process("Slice networks are trained by one process on one GPU.")
    settings = training.read_settings(SliceRunSettings)
    if weights is not None:
        network = settings.network.model_copy(update={"weights": weights})
        settings = settings.model_copy(update={"network": network})
    return SlicePlan(settings, table, out, device=choose_device(training.device))
