"""What a user may say about the outputs, and what a writer says when it cannot make one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chestct.errors import WriteError


class NothingToWriteError(WriteError):
    """This output cannot be made of this scan; the others can."""


@dataclass(frozen=True)
class WriteOptions:
    """What a user may say about the outputs of one call.

    Attributes:
        names: Names in `WRITERS`, in the order of the table: an object may refer to one that was
            written before it.
        skips_impossible: Whether an output that cannot be made of a scan is left out with a
            remark, as it should be when all were asked for, instead of being an error.
        is_deterministic: Whether DICOM objects are the same bytes each time, with the series'
            dates. Otherwise they have the date of writing; identifiers are the same each time in
            either case.
        makes_uids: Whether identifiers that the series lacks are made for DICOM objects.
        is_shared: Whether files and folders get the permissions that the system gives to new ones;
            otherwise nobody else may read them.
        earlier: Folder with the results that these replace, if any.
    """

    names: tuple[str, ...] = ("json", "html", "preview")
    skips_impossible: bool = False
    is_deterministic: bool = False
    makes_uids: bool = False
    is_shared: bool = False
    earlier: Path | None = None
