"""Read a run's settings from a YAML file, and say which field is wrong and what was meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from chestct.errors import TrainingError
from chestct.training.settings import RunSettings
from chestct.training.shipped_settings import find_settings, shipped_names

MAX_BYTES: Final = 2**20

Settings = TypeVar("Settings", bound=BaseModel)


def read_settings(path: str | Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Read and check the settings of a run on scans; see `read_settings_as`."""
    return read_settings_as(RunSettings, path, overrides)


def read_settings_as(
    model: type[Settings], path: str | Path, overrides: Sequence[str] = ()
) -> Settings:
    """Read and check a run's settings.

    Args:
        model: What they have to be: `RunSettings`, or `SliceRunSettings`.
        path: A YAML file with the model's sections, or the name of one that comes with chestct.
        overrides: Texts such as "training.epochs=5", which win over the file; what stands after
            the equals sign is read as YAML.

    Raises:
        TrainingError: The file cannot be read, or a setting is unknown, missing or impossible; the
            message names it by its dotted path.
    """
    file = find_settings(Path(path))
    values = _read_yaml(file, model)
    for override in overrides:
        _override(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise TrainingError(f"{file.name}: {_in_words(error, model)}") from error


def settings_as_yaml(settings: BaseModel) -> str:
    """All settings with every default filled in, as `read_settings` takes them."""
    text: str = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    return text


def setting_names(model: type[BaseModel] = RunSettings, prefix: str = "") -> list[str]:
    """Dotted paths of all settings."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += setting_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _read_yaml(file: Path, model: type[BaseModel]) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise TrainingError(f"{file} is larger than {MAX_BYTES} bytes: not a settings file.")
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        msg = (
            f"The settings {file} cannot be read: {reason}. Give a YAML file, or the name of "
            f"settings that come with chestct: {', '.join(shipped_names())}."
        )
        raise TrainingError(msg) from error
    except yaml.YAMLError as error:
        raise TrainingError(f"{file.name} is not well-formed YAML: {error}") from error
    if not isinstance(values, dict):
        sections = ", ".join(model.model_fields)
        raise TrainingError(f"{file.name} holds no settings. Expected the sections {sections}.")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    """Put one "name=value" into the nested values."""
    name, equals, text = override.partition("=")
    steps = name.strip().split(".")
    if not equals or not all(steps):
        msg = f"'{override}' sets nothing. Write it as NAME=VALUE, such as training.epochs=5."
        raise TrainingError(msg)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TrainingError(f"The value of '{override}' is not well-formed YAML.") from error
    section = values
    for step in steps[:-1]:
        if section.get(step) is None:
            section[step] = {}
        inner = section[step]
        if not isinstance(inner, dict):
            raise TrainingError(f"'{override}': the setting '{step}' has no parts.")
        section = inner
    section[steps[-1]] = _number_of(value)


def _number_of(value: object) -> object:
    """A number that YAML 1.1 takes for text, such as 1e-4."""
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if is_number else value  # type: ignore[arg-type]


def _in_words(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem, with the dotted path of its field and what is nearest to it."""
    first = error.errors()[0]
    name = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(name, model)
    if first["type"] == "missing":
        return f"the setting '{name}' is missing."
    message = first["msg"].removeprefix("Value error, ")
    return f"'{name}' is {first['input']!r}: {message}.{_nearest_choice(first)}"


def _unknown(name: str, model: type[BaseModel]) -> str:
    """Say that a setting is unknown; the nearest in its own section is looked for first."""
    names = setting_names(model)
    section, _, leaf = name.rpartition(".")
    inside = [each for each in names if each.rpartition(".")[0] == section]
    here = inside if section else list(model.model_fields)
    nearest = _nearest_leaf(leaf, here) or _nearest_leaf(leaf, names)
    hint = f" Did you mean '{nearest}'?" if nearest else ""
    return f"there is no setting '{name}'.{hint} Known: {', '.join(here)}."


def _nearest_leaf(leaf: str, names: Sequence[str]) -> str:
    leaves = {name.rpartition(".")[2]: name for name in reversed(names)}
    found = get_close_matches(leaf, leaves, n=1, cutoff=0.5)
    return leaves[found[0]] if found else ""


def _nearest_choice(problem: Mapping[str, Any]) -> str:
    choices = re.findall(r"'([^']+)'", str(problem.get("ctx", {}).get("expected", "")))
    found = get_close_matches(str(problem["input"]), choices, n=1, cutoff=0.4)
    return f" Did you mean '{found[0]}'?" if found else ""
