"""How much memory is free, a container's limit counted, and whether a piece of work fits into it.

A process that takes more than a container allows is ended without a word, and the other scans of a
batch with it. So what a scan will need is estimated before it is worked on, and a process that
stays gives back what the last one took.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

from chestct.errors import ReadError

_KIB: Final = 1024
_GROUPS: Final = "sys/fs/cgroup"
_FILES: Final = {
    "": ("memory.max", "memory.current", ""),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}
"""Control groups, version 2 and 1: the files with limit and use, and how the names begin of what
can be given up of it."""
_RECLAIMABLE: Final = ("inactive_file", "active_file")
"""Pages of files: the kernel gives them up before it ends a process."""


def _available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process may still take; None where nothing tells."""
    found = [*_free_in_machine(root), *_free_in_groups(root)]
    return max(0, min(found)) if found else None


def require_memory(
    needed_bytes: float, doing: str, *, remedy: str = "", root: Path = Path("/")
) -> None:
    """Refuse work that would take more memory than is free beyond what is taken already.

    The message names the work ("Classifying 1000 x 512 x 512 voxels") and a `remedy` beside the
    usual (", leave out --explain"). `root` is where `proc` and `sys` are.

    Raises:
        ReadError: It would.
    """
    available = _available_bytes(root)
    if available is not None and needed_bytes > available:
        msg = (
            f"{doing} takes about {needed_bytes / 1e9:.1f} GB of memory more, and "
            f"{available / 1e9:.1f} GB are free here, limits of a container counted. End other "
            f"programs, raise the limit{remedy} or crop the scan."
        )
        raise ReadError(msg)


def _free_in_machine(root: Path) -> Iterator[int]:
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc" / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * _KIB


def _free_in_groups(root: Path) -> Iterator[int]:
    """What is left below each limit: of this process's group and of those it lies in."""
    with suppress(OSError, ValueError):
        for line in (root / "proc" / "self" / "cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers not in _FILES:
                continue
            place = PurePosixPath(name.lstrip("/"))
            # Inside a container, the group's own name may not be there: its root is.
            for part in dict.fromkeys((place, *place.parents, PurePosixPath())):
                yield from _free_in_group(root / _GROUPS / controllers / part, _FILES[controllers])


def _free_in_group(folder: Path, names: tuple[str, str, str]) -> Iterator[int]:
    limit, used, prefix = names
    with suppress(OSError, ValueError):
        allowed = int((folder / limit).read_text())
        taken = int((folder / used).read_text())
        lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield allowed - taken + sum(int(lines.get(prefix + name, 0)) for name in _RECLAIMABLE)
