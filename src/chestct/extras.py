"""Import optional packages, naming the extra that brings a missing one."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from chestct.errors import ChestCTError


class MissingExtraError(ChestCTError):
    """An optional package is needed and not installed."""


def is_installed(package: str) -> bool:
    """Whether a top-level package can be imported, without importing it."""
    return find_spec(package) is not None


def import_extra(package: str, *, extra: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingExtraError: It is not installed; the message gives the command that installs it.
    """
    if not is_installed(package):
        msg = f"This needs the package '{package}': pip install 'chestct[{extra}]'"
        raise MissingExtraError(msg)
    return import_module(package)
