"""Options that the commands for training share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from chestct.errors import TrainingError

if TYPE_CHECKING:
    from chestct.classifier import Classifier
    from chestct.datasets.manifest import Manifest
    from chestct.labels import LabelSet
    from chestct.training.settings import LabelSettings

    Settings = TypeVar("Settings", bound=LabelSettings)

Config = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="Settings: a YAML file, or the name of one that 'chestct info' lists.",
    ),
]
ManifestFile = Annotated[
    Path, typer.Option("--data", metavar="MANIFEST", help="CSV file: one row per labelled scan.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting; may be said often."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        "--classes",
        metavar="A,B|YAML",
        help="The classes, in the classifier's order: names, or a YAML file with 'labels:', and "
        "'kind: findings' where a scan may have several.",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option("--processes", min=1, metavar="N", help="Scans read at once. Default: all cores."),
]
Beside = Annotated[
    list[str] | None,
    typer.Option(
        "--beside",
        metavar="NAME=CSV",
        help="Predictions of another classifier on the same scans (of slices: on the same "
        "patients), such as its predictions.csv, to be compared with; may be said often.",
    ),
]
MaseresZ = Annotated[
    bool,
    typer.Option(
        "--maseres-z",
        help="Also the MASERes paper's test, which is not sound, to stand beside its table.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where to train: auto, cpu, cuda or cuda:N. auto is a CUDA GPU where there is one.",
    ),
]
RunFolder = Annotated[
    Path, typer.Option("--out", metavar="RUN", help="Run folder: a new one, or one to go on.")
]
EvaluationFolder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder for metrics, tables and figures.")
]
RangeFolder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder for the table and the plot.")
]


Judge = Annotated[
    Path, typer.Argument(metavar="CLASSIFIER", help="Classifier folder, as train writes it.")
]


@dataclass(frozen=True)
class Judged:
    """Labelled scans that a finished classifier judges."""

    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="CSV file: one row per labelled scan.")
    ]
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="NAME",
            help="Only these rows: training, validation, test; of the manifest, or where it has "
            "no splits of the classifier's own run.",
        ),
    ] = None
    processes: Processes = None

    @property
    def said(self) -> dict[str, str | None]:
        """What workers need to read the same rows."""
        from chestct.remote import whole

        return {"manifest": whole(self.manifest), "split": self.split}

    def read(self, classifier: Classifier) -> Manifest:
        """The rows that are judged, with the classifier's labels.

        Raises:
            ManifestError: The manifest does not fit, or no row is of that split.
            UnknownNameError: There is no such split.
        """
        from chestct.training.judging import read_rows

        return read_rows(self.manifest, classifier, self.split)


@dataclass(frozen=True)
class Training:
    """With what settings, for what classes and where a network is trained."""

    config: Config
    overrides: Overrides = None
    labels: Labels = None
    processes: Processes = None
    device: Device = "auto"

    def read_settings(self, kind: type[Settings], overrides: Sequence[str] = ()) -> Settings:
        """The settings, with the changes and the classes that the command line names.

        Raises:
            TrainingError: The file, a change, or what `--labels` said does not fit.
        """
        from chestct.labels import LabelSet
        from chestct.training.settings import read_settings_as

        settings = read_settings_as(kind, self.config, [*(self.overrides or ()), *overrides])
        labels = named_labels(self.labels)
        if labels is None:
            return settings
        is_plain = labels == LabelSet.of_names(labels.names)
        of = "findings" if labels.are_findings else settings.kind if is_plain else "classes"
        classes = None if is_plain else labels.classes
        changes = {"labels": labels.names, "classes": classes, "kind": of}
        return settings.model_copy(update=changes)


@dataclass(frozen=True)
class RangeTest:
    """How far the learning rate rises."""

    steps: Annotated[
        int | None,
        typer.Option("--steps", min=2, metavar="N", help="Steps of the quick form. Default: 200."),
    ] = None
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            min=1,
            metavar="N",
            help="The MASERes paper's form instead: 1e-8 x 10^(epoch/20), 100 epochs there.",
        ),
    ] = None

    def require_one_form(self) -> None:
        """Refuse the steps of the quick form together with the epochs of the paper's.

        Raises:
            TrainingError: Both were said.
        """
        if self.steps is not None and self.epochs is not None:
            msg = (
                f"--steps {self.steps} is for the quick range test and --epochs {self.epochs} for "
                "the MASERes paper's, which has no steps. Say one of them."
            )
            raise TrainingError(msg)


def named_labels(said: str | None) -> LabelSet | None:
    """The classes of "severe,mild", or of a YAML file that lists them; None where nothing was said.

    Raises:
        TrainingError: There is no such file or it does not fit, or a name is empty or said twice.
    """
    from chestct.labels import LabelSet

    if said is None:
        return None
    if Path(said).suffix.lower() in (".yaml", ".yml"):
        from chestct.training.settings import LabelSettings, read_settings_as

        if not Path(said).is_file():
            msg = f"--labels: there is no file {said}. Name the classes, A,B, or a YAML file with"
            raise TrainingError(f"{msg} them under 'labels:'.")
        return read_settings_as(LabelSettings, said).label_set
    named = tuple(name.strip() for name in said.split(","))
    if not all(named):
        msg = f"--labels '{said}' has an empty name. Put one comma between two classes: A,B."
        raise TrainingError(msg)
    twice = [name for name in named if named.count(name) > 1]
    if twice:
        raise TrainingError(f"--labels '{said}' names '{twice[0]}' twice. Name each class once.")
    return LabelSet.of_names(named)


def named_files(
    said: list[str] | None,
    option: str = "--beside",
    what: str = "predictions. Write NAME=predictions.csv",
) -> dict[str, Path]:
    """Name to file, of what was said as NAME=CSV.

    Args:
        said: What was said.
        option: Of what, for messages.
        what: What each names, and how.

    Raises:
        TrainingError: One has no name or no file, or two have the same name.
    """
    named: dict[str, Path] = {}
    for text in said or ():
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise TrainingError(f"'{text}' names no {what}.")
        if name in named:
            raise TrainingError(f"{option} names '{name}' twice. Give each a name of its own.")
        named[name] = Path(path)
    return named
