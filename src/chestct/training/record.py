"""What a run folder says of how the run came about: settings, scans, versions, seed, git state."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import ValidationError

from chestct import __version__
from chestct.errors import ReadError, TrainingError
from chestct.storage import file_sha256, write_text
from chestct.training.devices import settle_precision
from chestct.training.run import FREE_SETTINGS
from chestct.training.settings import RunSettings
from chestct.training.slice_settings import SliceRunSettings

RUN_FILE: Final = "run.json"
_PACKAGES: Final = ("torch", "numpy", "scipy", "scikit-learn", "statsmodels", "pydicom")
_PACKAGE_FOLDER: Final = Path(__file__).parents[1]
_FREE: Final = (
    "data.cache",
    "data.cache_gib",
    "tracking.mlflow_uri",
    "tracking.mlflow_experiment",
    *(f"training.{name}" for name in FREE_SETTINGS),
)
"""Settings that change no result and may differ when a run goes on."""


def program_versions() -> dict[str, str]:
    """Program to version, of all that has a part in the weights."""
    versions = {package: metadata.version(package) for package in _PACKAGES}
    return {"chestct": __version__, "python": platform.python_version(), **versions}


def git_state(folder: Path = _PACKAGE_FOLDER) -> dict[str, object] | None:
    """Commit of the program and whether its files were changed since; None outside a repository."""
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--", ".")
    if commit is None or changed is None:
        return None
    return {"commit": commit.strip(), "is_changed": bool(changed.strip())}


def begin_record(
    folder: Path,
    settings: RunSettings | SliceRunSettings,
    manifest: Path,
    num_folds: int | None = None,
    *,
    place: str = "cpu",
) -> None:
    """Write `run.json`, or add to that of a run which goes on.

    Args:
        folder: The run folder; made when it does not exist.
        settings: All of them.
        manifest: The CSV file the run was started with.
        num_folds: Of a cross-validation, or None.
        place: Device and number of processes, in words; each session may have another.

    Raises:
        TrainingError: The folder holds a run with other settings or scans, or something else.
        ReadError: Its `run.json` is damaged.
        WriteError: It cannot be written.
    """
    path = folder / RUN_FILE
    facts: dict[str, Any] = {
        "seed": settings.training.seed,
        "folds": num_folds,
        "manifest": {"name": manifest.name, "sha256": file_sha256(manifest)},
        "settings": settings.model_dump(mode="json"),
    }
    sessions: list[object] = []
    if path.is_file():
        before = _read(path)
        before["settings"] = _with_defaults(folder, before["settings"], type(settings))
        _agree(folder, before, facts)
        sessions = before["sessions"]
    elif folder.is_dir() and any(folder.iterdir()):
        raise TrainingError(f"{folder.name} is not empty and holds no run. Choose a new folder.")
    facts["sessions"] = [*sessions, _session(place)]
    write_text(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def _session(place: str) -> dict[str, object]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": program_versions(),
        "git": git_state(),
        "place": place,
    }


def settled(settings: RunSettings, folder: Path, device: torch.device) -> RunSettings:
    """The settings with `training.precision` named, as the run in the folder was begun.

    Raises:
        ReadError: Its `run.json` is damaged.
    """
    path = folder / RUN_FILE
    before = _read(path)["settings"].get("training", {}) if path.is_file() else {}
    wanted = settings.training.precision
    precision = settle_precision(wanted, before.get("precision"), device)
    training = settings.training.model_copy(update={"precision": precision})
    return settings.model_copy(update={"training": training})


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted path, two levels deep as the sections are."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        is_section = isinstance(value, dict) and not prefix
        inner = flat_settings(value, f"{name}.") if is_section else {prefix + name: value}
        flat |= inner
    return flat


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"folds", "manifest", "settings", "sessions"} <= record.keys():
            raise ValueError("a field is missing")
    except (OSError, ValueError, AttributeError) as error:
        msg = f"{path.name} in {path.parent.name} is damaged ({error}). Start in a new folder."
        raise ReadError(msg) from error
    return record


def _with_defaults(
    folder: Path, settings: dict[str, Any], model: type[RunSettings | SliceRunSettings]
) -> dict[str, Any]:
    """Settings of an earlier session; one that came after the run began had its default then."""
    try:
        return model.model_validate(settings).model_dump(mode="json")
    except ValidationError as error:
        name = ".".join(map(str, error.errors()[0]["loc"]))
        msg = (
            f"{folder.name} holds a run of another version of chestct, and this one does not know "
            f"what its setting {name} says. Use a new folder."
        )
        raise TrainingError(msg) from error


def _agree(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on where settings or scans differ; the message names the first ones."""
    if before["manifest"]["sha256"] != now["manifest"]["sha256"]:
        msg = f"{folder.name} holds a run on another manifest, or on this one before it was changed"
        raise TrainingError(f"{msg}. Use a new folder.")
    pairs = {"folds": (before["folds"], now["folds"])}
    old, new = flat_settings(before["settings"]), flat_settings(now["settings"])
    pairs |= {name: (old.get(name), value) for name, value in new.items()}
    changed = [
        f"{name} was {was}, is {is_now}"
        for name, (was, is_now) in pairs.items()
        if was != is_now and name not in _FREE
    ]
    if changed:
        listed = ", ".join(changed)
        msg = f"{folder.name} holds a run with other settings: {listed}. Use a new folder."
        raise TrainingError(msg)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says of a folder, or None."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
