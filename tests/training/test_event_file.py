from __future__ import annotations

import struct
from pathlib import Path

import pytest

from chestct.errors import WriteError
from chestct.training.session import _TAGS, _EventFile

WRITTEN_BY_TENSORBOARD = {
    "version": "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9",
    "step 300": (
        "8400000000000000411d8aef0900001040fc54d94110ac022a760a140a0d6c6f73732f747261696e696e67"
        "150000403f0a160a0f6c6f73732f76616c69646174696f6e150000003f0a1a0a1361636375726163792f76"
        "616c69646174696f6e150000603f0a140a0d6c6561726e696e675f72617465156f12833a0a140a0d65706f"
        "63682f7365636f6e6473150000484175a7cb5d"
    ),
}
"""Records of TensorBoard 2.21.0's own `RecordWriter`, for what `test_...as_tensorboard` writes."""

NOW = 1700000000.25


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)


def epoch(number: int, **changed: object) -> dict[str, object]:
    figures = {"training_loss": 0.75, "validation_loss": 0.5, "validation_accuracy": 0.875}
    figures |= {"learning_rate": 0.001, "seconds": 12.5}
    return {"epoch": number, **figures, "gpu_memory_gib": None, **changed}


def records(path: Path) -> list[bytes]:
    """Contents of a file's records, taken apart by their lengths."""
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        assert len(content) >= length + 16
        found.append(content[12 : 12 + length])
        content = content[length + 16 :]
    return found


def only_file(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_an_epoch_is_written_byte_for_byte_as_tensorboard_does(tmp_path: Path) -> None:
    _EventFile(tmp_path).update([epoch(300)])
    expected = "".join(WRITTEN_BY_TENSORBOARD.values())
    assert only_file(tmp_path).read_bytes().hex() == expected


def test_every_epoch_is_written_once_and_memory_where_there_is_a_gpu(tmp_path: Path) -> None:
    events = _EventFile(tmp_path)
    events.update([epoch(0)])
    events.update([epoch(0), epoch(1, gpu_memory_gib=7.5), epoch(2)])
    version, *written = records(only_file(tmp_path))
    assert b"brain.Event:2" in version
    assert len(written) == 3
    tag = _TAGS["gpu_memory_gib"].encode()
    assert [tag in content for content in written] == [False, True, False]


def test_a_run_that_goes_on_has_one_file_with_all_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _EventFile(tmp_path).update([epoch(0), epoch(1)])
    monkeypatch.setattr("time.time", lambda: NOW + 5)
    _EventFile(tmp_path).update([epoch(0), epoch(1), epoch(2)])
    assert len(records(only_file(tmp_path))) == 4


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="Free some space"):
        _EventFile(tmp_path / "file").update([epoch(0)])
