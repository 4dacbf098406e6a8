"""What a user may say about the outputs, and what a writer says when it cannot make one."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

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
        is_deterministic: Whether DICOM objects are the same bytes each time: identifiers from the
            scan and the classifier alone, dates from the series.
        makes_uids: Whether identifiers that the series lacks are made for DICOM objects.
        salt: Makes the identifiers of this call differ from those of any other.
    """

    names: tuple[str, ...] = ("json", "html", "preview")
    skips_impossible: bool = False
    is_deterministic: bool = False
    makes_uids: bool = False
    salt: str = field(default_factory=lambda: secrets.token_hex(16))
