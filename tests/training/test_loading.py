from __future__ import annotations

from contextlib import closing
from itertools import islice
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from brightness import SETS, SETTINGS, Brightness, MeanThenLinear
from torch.utils.data import Dataset

from chestct.errors import ReadError, TrainingError
from chestct.training.distributed import CPU, Ranks
from chestct.training.loop import (
    _batches_on,
    _in_steps,
    _make_loader,
    _Steps,
    _steps_of_epoch,
    train,
)
from chestct.training.run import LabelledSets

META = torch.device("meta")


class OneIsGone(Brightness):
    """The file of one example was there when training began."""

    def __init__(self, num: int, gone: int, error: Exception) -> None:
        super().__init__(num)
        self.gone, self.error = gone, error

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        if index == self.gone:
            raise self.error
        return super().__getitem__(index)


def test_batches_arrive_on_the_device_of_the_network() -> None:
    loader = _make_loader(Brightness(5), _in_steps(range(5), 2), workers=0, device=META)
    batches = list(_batches_on(META, loader))
    assert [tuple(labels.shape) for _, _, labels in batches] == [(2,), (2,), (1,)]
    assert {part.device for batch in batches for part in batch} == {META}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_scan_that_cannot_be_read_stops_with_its_own_words_and_no_traceback(
    workers: int,
) -> None:
    before = set(active_children())
    examples: Dataset = OneIsGone(6, 3, ReadError("scans.csv, row 5: p03.nii.gz is not there."))
    loader = _make_loader(examples, _in_steps(range(6), 2), workers=workers, device=CPU)
    batches = _batches_on(CPU, loader)
    assert next(batches)[2].tolist() == [0, 1]
    with pytest.raises(TrainingError, match="row 5") as caught:
        next(batches)
    assert "Traceback" not in str(caught.value)
    assert "start the same command again" in str(caught.value)
    assert set(active_children()) <= before


def test_reading_processes_end_when_the_batches_are_closed_early() -> None:
    before = set(active_children())
    loader = _make_loader(Brightness(6), _in_steps(range(6), 2), workers=1, device=CPU)
    with closing(_batches_on(CPU, loader)) as batches:
        next(batches)
        assert len(set(active_children()) - before) == 1
    assert set(active_children()) <= before


def test_a_run_that_lost_a_scan_goes_on_where_it_was_once_the_scan_is_back(
    tmp_path: Path,
) -> None:
    settings = SETTINGS.model_copy(update={"workers": 0})
    gone = OneIsGone(24, 7, OSError("the disk is gone"))
    sets = LabelledSets(gone, Brightness(8), num_classes=2)
    with pytest.raises(TrainingError, match="the disk is gone"):
        train(MeanThenLinear(), sets, settings, tmp_path / "lost")
    found, whole = MeanThenLinear(), MeanThenLinear()
    train(found, SETS, settings, tmp_path / "lost")
    train(whole, SETS, settings, tmp_path / "whole")
    first, second = found.state_dict(), whole.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_steps_go_on_from_any_step_through_all_later_epochs() -> None:
    labels = torch.arange(10) % 2
    whole = list(islice(_Steps(labels, SETTINGS), 9))
    assert whole[:3] == _steps_of_epoch(labels, SETTINGS, 0)
    assert whole[3:6] == _steps_of_epoch(labels, SETTINGS, 1)
    assert whole[:3] != whole[3:6]
    assert list(islice(_Steps(labels, SETTINGS, epoch=1, first_step=2), 4)) == whole[5:]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shares_of_a_step_are_all_of_it_and_nobody_is_idle(size: int) -> None:
    labels = torch.arange(9) % 2
    for step in range(3):
        whole = _steps_of_epoch(labels, SETTINGS, 0)[step]
        shares = [
            next(iter(_Steps(labels, SETTINGS, first_step=step, ranks=Ranks(rank, size))))
            for rank in range(size)
        ]
        assert all(shares)
        owned = [example for rank in range(size) for example in Ranks(rank, size).share(whole)]
        assert sorted(owned) == sorted(whole)
        assert {example for share in shares for example in share} == set(whole)
