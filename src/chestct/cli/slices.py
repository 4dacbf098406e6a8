"""`chestct slices`: networks that see one slice at a time, from pictures to patients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.cli import slice_options as given
from chestct.cli import training_options as options
from chestct.errors import TrainingError

if TYPE_CHECKING:
    from chestct.datasets.manifest import Manifest
    from chestct.training.slice_settings import SliceRunSettings

app = typer.Typer(
    help="Networks that see one slice at a time: from pictures to patients.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("list")
def list_slices(
    folder: given.Pictures,
    out: given.NewTable,
    lists: given.Lists = None,
    images: given.Images = None,
    patient_pattern: given.PatientPattern = None,
) -> None:
    """Make a table of the slices of a folder, one row per picture."""
    from chestct.cli.training_lines import listening
    from chestct.datasets.manifest import write_manifest
    from chestct.datasets.slice_lists import parse_list, read_lists, scan_slice_folder

    if lists:
        named = [parse_list(each, images or folder) for each in lists]
        found = read_lists(named, folder, patient_pattern=patient_pattern)
    else:
        found = scan_slice_folder(folder, patient_pattern=patient_pattern)
    with listening(None) as listener:
        for note in found.notes:
            listener.note(note)
    write_manifest(found.manifest, out)
    _say_written(found.manifest, out)


@app.command()
def extract(
    manifest: given.Manifest,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="New folder for pictures and slices.csv.")
    ],
    labels: given.SliceLabels = None,
    index: given.Index = None,
    without_labels: given.WithoutLabels = "normal",
    uninfected: given.Uninfected = "leave_out",
    window: given.Window = "lung",
    every: given.Every = 1,
) -> None:
    """Write the slices of labelled scans as pictures, with a table of them."""
    from chestct.cli.training_lines import listening
    from chestct.datasets.manifest import read_manifest, write_manifest
    from chestct.datasets.slice_extract import Extraction, extract_slices, read_slice_labels

    if (labels is None) != (index is None):
        raise TrainingError("--labels and --index belong together: give both, or neither.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is not empty. Choose a new folder.")
    known = read_slice_labels(labels, index) if labels and index else {}
    extraction = Extraction(known, without_labels, uninfected, window, every)
    with listening(None) as listener:
        found = extract_slices(read_manifest(manifest), extraction, out, told=listener.note)
    table = write_manifest(found, out / "slices.csv")
    _say_written(found, table)


@app.command()
def train(
    config: options.Config,
    table: given.SliceTable,
    out: Annotated[
        Path, typer.Option("--out", metavar="RUN", help="Run folder: a new one, or one to go on.")
    ],
    weights: given.Weights = None,
    overrides: options.Overrides = None,
    device: options.Device = "auto",
    processes: options.Processes = None,
) -> None:
    """Train a slice network and vote on patients; stopped, the same command goes on."""
    from chestct.cli.training_lines import EpochLines, listening, show_summary
    from chestct.training.devices import choose_device
    from chestct.training.slice_session import SlicePlan, run_slice_training

    settings = _settings(config, overrides, weights)
    lines = EpochLines(settings.training.epochs)
    with listening(processes) as listener:
        plan = SlicePlan(
            settings,
            table,
            out,
            listener,
            after_epoch=lambda entry: lines.show(out.name, entry),
            device=choose_device(device),
        )
        summary = run_slice_training(plan)
    show_summary(summary, out)


@app.command("lr-range")
def lr_range(
    config: options.Config,
    table: given.SliceTable,
    out: options.RangeFolder,
    weights: given.Weights = None,
    overrides: options.Overrides = None,
    steps: options.RangeSteps = None,
    epochs: options.RangeEpochs = None,
    device: options.Device = "auto",
    processes: options.Processes = None,
) -> None:
    """Train while the learning rate rises, draw the loss, suggest a rate."""
    from chestct.cli.training_lines import EpochLines, listening, show_range_test
    from chestct.training.devices import choose_device
    from chestct.training.lr_range import write_range_test
    from chestct.training.quick_range import QUICK_STEPS
    from chestct.training.slice_session import SlicePlan, run_slice_range_test

    options.require_one_form(steps, epochs)
    settings = _settings(config, overrides, weights)
    lines = EpochLines(epochs or 1)
    with listening(processes) as listener:
        plan = SlicePlan(
            settings,
            table,
            out,
            listener,
            after_epoch=lambda entry: lines.show("range", entry),
            device=choose_device(device),
        )
        found = run_slice_range_test(plan, steps=steps or QUICK_STEPS, epochs=epochs)
    show_range_test(found, write_range_test(found, out))


@app.command()
def evaluate(
    classifier: given.Classifier,
    table: given.GivenTable,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for metrics, tables and figures.")
    ],
    beside: options.Beside = None,
    processes: options.Processes = None,
) -> None:
    """Classify labelled slices, vote on their patients, write figures with intervals."""
    from chestct.cli.training_lines import listening, show_summary
    from chestct.training.slice_card import load_slice_classifier
    from chestct.training.slice_judging import evaluate_slices

    others = options.named_files(beside)
    loaded = load_slice_classifier(classifier)
    with listening(processes) as listener:
        summary = evaluate_slices(loaded, table, out, listener, others)
    show_summary(summary, out)


@app.command()
def explain(
    classifier: given.Classifier,
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A slice: PNG, JPEG or TIFF.")],
    out: Annotated[Path, typer.Option("--out", metavar="PNG", help="Picture to write.")],
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="NAME", help="Class to explain. Default: the likeliest."),
    ] = None,
) -> None:
    """Show where in a slice the network saw a class (Grad-CAM)."""
    from chestct.labels import NOT_FOR_CLINICAL_USE
    from chestct.training.slice_card import load_slice_classifier
    from chestct.training.slice_explaining import explain_picture

    explained = explain_picture(load_slice_classifier(classifier), picture, out, label)
    for name, share in explained.probabilities.items():
        typer.echo(f"{name}  {share:.1%}")
    for warning in explained.warnings:
        typer.echo(f"! {warning}")
    typer.echo(f"{out} shows what spoke for {explained.label}")
    typer.echo(NOT_FOR_CLINICAL_USE)


def _say_written(slices: Manifest, table: Path) -> None:
    """How many slices of whom a table holds, and where it is."""
    cases = ", ".join(f"{count} {label}" for label, count in slices.cases.items())
    typer.echo(f"{len(slices)} slices of {slices.num_patients} patients ({cases})")
    typer.echo(str(table))


def _settings(config: Path, overrides: list[str] | None, weights: str | None) -> SliceRunSettings:
    """Settings of a slice run, with the weights of the command line."""
    from chestct.training.ranks import require_one_process
    from chestct.training.settings_file import read_settings_as
    from chestct.training.slice_settings import SliceRunSettings

    require_one_process("Slice networks are trained by one process on one GPU.")
    settings = read_settings_as(SliceRunSettings, config, overrides or ())
    if weights is None:
        return settings
    network = settings.network.model_copy(update={"weights": weights})
    return settings.model_copy(update={"network": network})
