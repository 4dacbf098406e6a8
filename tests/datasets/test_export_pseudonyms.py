"""Keys and the names made with them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from chestct.datasets.scan_copies import ExportError
from chestct.datasets.sharing import (
    KEY_BYTES,
    _drawn_pseudonyms,
    _key_check,
    _keyed_pseudonyms,
    read_or_make_key,
)


def test_a_key_is_made_once_and_then_read(tmp_path: Path) -> None:
    key = read_or_make_key(tmp_path / "key")
    assert len(key) == KEY_BYTES
    assert read_or_make_key(tmp_path / "key") == key
    assert read_or_make_key(tmp_path / "other") != key


@pytest.mark.parametrize("length", [0, 15, 4097])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "key").write_bytes(b"x" * length)
    with pytest.raises(ExportError, match="were expected"):
        read_or_make_key(tmp_path / "key")


def test_a_key_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no such file"):
        read_or_make_key(tmp_path / "nowhere" / "key")


def test_the_same_key_and_patient_give_the_same_name_and_blanks_do_not_matter() -> None:
    key = b"a key of sixteen"
    names = _keyed_pseudonyms(["MRN-1", "MRN-2"], key)
    assert _keyed_pseudonyms([" MRN-1 "], key)[" MRN-1 "] == names["MRN-1"]
    assert names["MRN-1"] != names["MRN-2"]
    assert _keyed_pseudonyms(["MRN-1"], b"another of sixteen")["MRN-1"] != names["MRN-1"]


def test_two_patients_with_one_name_are_refused() -> None:
    with pytest.raises(ExportError, match="same pseudonym"):
        _keyed_pseudonyms(["MRN-1", "MRN-1 "], b"a key of sixteen")


def test_a_name_that_was_drawn_is_not_drawn_again() -> None:
    class Stuck(random.Random):
        def __init__(self) -> None:
            super().__init__(0)
            self.calls = 0

        def randbytes(self, n: int) -> bytes:
            self.calls += 1
            return bytes([self.calls // 3] * n)

    assert len(set(_drawn_pseudonyms(["a", "b", "c"], Stuck()).values())) == 3


def test_the_check_of_a_key_tells_keys_apart() -> None:
    assert _key_check(b"1" * 16) == _key_check(b"1" * 16) != _key_check(b"2" * 16)
