"""Names for patients that say nothing of them: drawn at random, or made with a secret key.

A keyed name is the same in every export made with the key, and nobody without the key can find
the patient of a name by trying names. A random one can be linked to nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import random
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from chestct.errors import ChestCTError

NUM_LETTERS: Final = 10
"""Letters of a pseudonym, five bits each."""
KEY_BYTES: Final = 32
LEAST_KEY_BYTES: Final = 16
MOST_KEY_BYTES: Final = 4096
_OWNER_ONLY = 0o600


class PseudonymError(ChestCTError):
    """A key cannot be used."""


def read_or_make_key(path: Path) -> bytes:
    """The secret key in a file; where there is no file, one is made that only its owner can read.

    Raises:
        PseudonymError: The file cannot be read or written, or is no key.
    """
    try:
        if not path.exists():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
            with os.fdopen(handle, "wb") as stream:
                stream.write(secrets.token_bytes(KEY_BYTES))
        with path.open("rb") as stream:
            key = stream.read(MOST_KEY_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        msg = f"The key file {path} cannot be used: {reason}. Name a file in a folder of yours."
        raise PseudonymError(msg) from error
    if not LEAST_KEY_BYTES <= len(key) <= MOST_KEY_BYTES:
        msg = f"The key file {path} holds {len(key)} bytes, and {LEAST_KEY_BYTES} to"
        msg += f" {MOST_KEY_BYTES} were expected. Name a file that is not there yet:"
        raise PseudonymError(f"{msg} a key is then made.")
    return key


def keyed_pseudonyms(patients: Iterable[str], key: bytes) -> dict[str, str]:
    """Patient to pseudonym by HMAC-SHA-256: the same key and patient give the same one."""

    def name_of(patient: str) -> str:
        """Letters that only the key's owner can make of a patient."""
        return _letters(hmac.digest(key, f"patient\n{patient.strip()}".encode(), "sha256"))

    return _all_different(patients, name_of)


def drawn_pseudonyms(patients: Iterable[str], rng: random.Random) -> dict[str, str]:
    """Patient to pseudonym, drawn.

    Args:
        patients: Each once or several times.
        rng: `random.SystemRandom()` where names must not be guessed.
    """
    taken: set[str] = set()

    def name_of(patient: str) -> str:
        """Letters that no other patient has."""
        while True:
            name = _letters(rng.randbytes(KEY_BYTES))
            if name not in taken:
                taken.add(name)
                return name

    return _all_different(patients, name_of)


def key_check(key: bytes) -> str:
    """What tells two keys apart and says nothing of them."""
    return hashlib.sha256(hmac.digest(key, b"chestct export", "sha256")).hexdigest()[:16]


def _all_different(patients: Iterable[str], name_of: Callable[[str], str]) -> dict[str, str]:
    names = {patient: name_of(patient) for patient in dict.fromkeys(patients)}
    if len(set(names.values())) < len(names):
        msg = "Two patients get the same pseudonym, or differ in blanks only. Check the column"
        raise PseudonymError(f"{msg} 'patient', or take another key.")
    return names


def _letters(digest: bytes) -> str:
    """Lower-case letters and digits that no file system confuses."""
    return "p" + base64.b32encode(digest).decode("ascii").lower()[: NUM_LETTERS - 1]
