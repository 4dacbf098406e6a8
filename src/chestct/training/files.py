"""Small text files of a run folder, whole or not there."""

from __future__ import annotations

from pathlib import Path

from chestct.errors import WriteError


def write_text(path: Path, text: str) -> None:
    """Write a text file aside and rename it, its folder made when needed.

    Raises:
        WriteError: It cannot be written.
    """
    aside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        msg = f"{path.name} cannot be written in {path.parent.name}: {reason}."
        raise WriteError(f"{msg} Free some space or choose another folder.") from error
