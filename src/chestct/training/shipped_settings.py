"""The settings files that come with chestct: the papers' protocols and what we would use.

They lie in `configs/` of the repository, and inside the package once that is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).parents[1]
_SUFFIX: Final = ".yaml"


def shipped_folder() -> Path:
    """Where they are: in the package, or in the repository where that is run in place."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "configs"


def shipped_names() -> list[str]:
    """What they are called: their paths in the folder, without the suffix."""
    folder = shipped_folder()
    return sorted(
        file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob(f"*{_SUFFIX}")
    )


def find_settings(given: Path) -> Path:
    """The file of the settings given by path or by name; a file that is there comes first."""
    if given.is_file() or given.as_posix() not in shipped_names():
        return given
    return shipped_folder() / f"{given.as_posix()}{_SUFFIX}"
