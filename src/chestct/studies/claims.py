"""Several programs share out the rows of a study: each takes what no other one has.

A claim is a lock of the operating system on a small file, which falls with the program that holds
it, killed or not: there are no stale claims to be found out. It works between programs of one
machine, and between machines where the folder's file system passes locks on (NFS 4 does).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chestct.errors import WriteError


@contextmanager
def claim(file: Path, *, waits: bool = False) -> Iterator[bool]:
    """Hold the lock on a file, which is made when needed and left behind empty.

    Args:
        file: What stands for the thing claimed.
        waits: Wait for whoever holds it, rather than going on without.

    Yields:
        Whether it is ours until the block ends.

    Raises:
        WriteError: The file cannot be made.
    """
    # Only here, as Windows has no such module and needs none of this to import the package.
    import fcntl

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a")
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        msg = f"{file.name} cannot be made in {file.parent.name}: {reason}. Choose another folder."
        raise WriteError(msg) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
