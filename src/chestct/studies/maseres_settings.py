"""Settings of the MASERes paper's networks, from the committed files, and what was changed in them.

`configs/` holds a file for each network on volumes and each form, `configs/slices/` one for each
network on slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel

from chestct.datasets.slice_lists import SHARES_PATIENTS
from chestct.lookup import look_up
from chestct.networks.slice_weights import IMAGENET, NO_WEIGHTS
from chestct.studies.study_rows import StudyError
from chestct.training.settings import RunSettings
from chestct.training.settings_file import read_settings_as
from chestct.training.slice_parts import RANDOM_WEIGHTS
from chestct.training.slice_session import BY_PATIENT, LEAK_STATED
from chestct.training.slice_settings import SliceRunSettings

_CHANGE_NO_RESULT: Final = ("data.cache", "tracking.")
"""Beginnings of settings that a table need not tell of, and that can hold paths of the machine."""

FORMS: Final = ("published", "paper")
"""What the authors' notebooks do, and what the text says."""

Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True)
class Chosen:
    """What a table is made with.

    Attributes:
        configs: Folder of the settings files, one per network.
        form: A name in `FORMS`.
        overrides: Changes to every file, as `--set` takes them.
        edge: Voxels or pixels along each side of an input; None leaves it to the files.
    """

    configs: Path
    form: str = "published"
    overrides: tuple[str, ...] = ()
    edge: int | None = None

    @property
    def changes(self) -> tuple[str, ...]:
        """All that is not as in the files and may change a result, in words."""
        edge = () if self.edge is None else (f"inputs of {self.edge} along each side",)
        told = [each for each in self.overrides if not each.strip().startswith(_CHANGE_NO_RESULT)]
        return (*edge, *told)


def chosen_networks(table: Mapping[str, str], only: Sequence[str]) -> tuple[str, ...]:
    """The networks of a table in its order; all where none is named.

    Raises:
        UnknownNameError: There is no such network in the table.
    """
    for name in only:
        look_up(table, name, kind="network of this table")
    return tuple(name for name in table if not only or name in only)


def patient_settings(network: str, chosen: Chosen) -> RunSettings:
    """Settings of a network on volumes.

    Raises:
        StudyError: There is no folder of settings.
        TrainingError: The network's file is missing or wrong.
    """
    edge = chosen.edge
    sized = () if edge is None else (f"recipe.overrides.input_shape=[{edge}, {edge}, {edge}]",)
    return _read(RunSettings, network, chosen, sized)


def slice_settings(network: str, chosen: Chosen, weights: str | None = None) -> SliceRunSettings:
    """Settings of a network on slices.

    Args:
        network: A name in `SLICE_NETWORKS`.
        chosen: What the table is made with.
        weights: "imagenet", "none", or a folder with a file NETWORK.safetensors; None leaves it to
            the settings file.

    Raises:
        StudyError: There is no folder of settings.
        TrainingError: The network's file is missing or wrong.
    """
    sized = () if chosen.edge is None else (f"network.settings.size={chosen.edge}",)
    settings = _read(SliceRunSettings, network, chosen, sized)
    if weights is None:
        return settings
    is_name = weights in (IMAGENET, NO_WEIGHTS)
    wanted = weights if is_name else str(Path(weights) / f"{network}.safetensors")
    section = settings.network.model_copy(update={"weights": wanted})
    return settings.model_copy(update={"network": section})


def settings_remarks(chosen: Chosen) -> list[str]:
    """What a reader of a table has to know of its settings."""
    changes = ", ".join(chosen.changes)
    changed = [f"Not as in the settings files: {changes}."] if changes else []
    return [f"Settings: the form '{chosen.form}'.", *changed]


def slice_remarks(settings: SliceRunSettings, chosen: Chosen) -> list[str]:
    """What a reader of the table of slices has to know."""
    is_random = settings.network.weights == NO_WEIGHTS
    weights = [f"Backbones with {RANDOM_WEIGHTS}. The paper's had ImageNet's."] if is_random else []
    divided = LEAK_STATED if settings.data.split == SHARES_PATIENTS else BY_PATIENT
    return [*settings_remarks(chosen), *weights, f"Divided {divided}."]


def _read(model: type[Settings], network: str, chosen: Chosen, sized: tuple[str, ...]) -> Settings:
    """A network's settings; what the user sets wins over the size."""
    look_up(dict.fromkeys(FORMS), chosen.form, kind="form")
    if not chosen.configs.is_dir():
        msg = (
            f"There is no folder '{chosen.configs}'. Give one with the settings of the paper's "
            "networks, or leave --configs out: those that come with chestct are taken then."
        )
        raise StudyError(msg)
    file = chosen.configs / f"{network}_{chosen.form}.yaml"
    return read_settings_as(model, file, (*sized, *chosen.overrides))
