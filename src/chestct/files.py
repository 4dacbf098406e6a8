"""Put files where the user wants them: whole or not at all, and with a clear word when not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from chestct.errors import WriteError

REMEDY: Final = "Free space, change permissions or choose another --out."
"""What to do about a file that cannot be written where a command was told to."""


def make_folder(folder: Path) -> Path:
    """Make a folder and its parents where they are not there yet.

    Raises:
        WriteError: It cannot be made, or something that is not a folder has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        msg = f"{folder} is a file and a folder is needed there. Choose another --out."
        raise WriteError(msg) from error
    except OSError as error:
        raise WriteError(_refusal(folder, error)) from error
    return folder


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file aside and then rename it, so that nobody ever reads half of it.

    Raises:
        WriteError: It cannot be written; no half-written file is left behind.
    """
    return write_whole_with(path, lambda aside: aside.write_bytes(content))


def write_text(path: Path, text: str) -> Path:
    """As `write_whole`, for text."""
    return write_whole(path, text.encode())


def write_whole_with(path: Path, write: Callable[[Path], object], *, remedy: str = REMEDY) -> Path:
    """As `write_whole`, for content that another library writes to a path it is given.

    The path given ends like `path`, as some libraries choose the format by it. `remedy` is said
    when it cannot be written.
    """
    aside = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        aside.replace(path)
    except OSError as error:
        raise WriteError(_refusal(path, error, remedy)) from error
    finally:
        # What hinders the writing may hinder this too; its reason is told above.
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    return path


def write_folder_with(folder: Path, write: Callable[[Path], object]) -> Path:
    """As `write_whole_with` for a folder full of files; an older folder of this name is replaced.

    Raises:
        WriteError: It cannot be written; nothing half-written is left behind.
    """
    make_folder(folder.parent)
    aside = folder.with_name(f".{os.getpid()}.part.{folder.name}")
    try:
        aside.mkdir()
        write(aside)
        if folder.exists():
            shutil.rmtree(folder)
        aside.replace(folder)
    except OSError as error:
        raise WriteError(_refusal(folder, error)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def remove_file(path: Path) -> None:
    """Remove a file, if there is one.

    Raises:
        WriteError: It cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(_refusal(path, error)) from error


def _refusal(path: Path, error: OSError, remedy: str = REMEDY) -> str:
    reason = (error.strerror or type(error).__name__).lower()
    return f"{path} cannot be written: {reason}. {remedy}"
