from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from brightness import SETS, SETTINGS, Breaks, Brightness, MeanThenLinear
from torch import nn

from chestct.cli.train import _show_range_test
from chestct.datasets.augment import _Augmentation
from chestct.datasets.workers import Progress
from chestct.errors import TrainingError
from chestct.training.loop import train
from chestct.training.plan import Plan
from chestct.training.run import DivergedError, LabelledSets
from chestct.training.search import (
    _BREAKS_AT,
    _LEFT_OUT,
    _OWN,
    RangeTest,
    _note_left_out,
    _range_per_epoch,
    _range_per_step,
    _smooth,
    run_range_test,
    write_range_test,
)
from chestct.training.settings import TrainingSettings, read_settings

QUICK = SETTINGS.model_copy(update={"workers": 0, "mixup_alpha": 0.0, "optimizer": "sgd"})
DOCS = Path(__file__).resolve().parents[2] / "docs"
HONOURED = {
    *("batch_size", "accumulation", "optimizer", "weight_decay", "momentum", "adam_epsilon"),
    *("class_weights", "sampling", "label_smoothing", "mixup_alpha", "precision"),
    *("checkpoint_activations", "workers", "seed", "start_from", "freeze", "rates"),
}


def test_the_paper_s_form_goes_on_where_it_was_and_reads_the_validation_loss(
    tmp_path: Path,
) -> None:
    settings = QUICK.model_copy(update={"epochs": 3})
    whole = _range_per_epoch(MeanThenLinear(), SETS, settings, tmp_path / "whole")
    assert whole.is_per_epoch
    assert whole.rates == pytest.approx([1e-8 * 10 ** (epoch / 20) for epoch in range(3)])
    again = _range_per_epoch(MeanThenLinear(), SETS, settings, tmp_path / "whole")
    assert again == whole


class BreaksWhileTraining(Breaks):
    def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            self.calls -= 1
        return super().forward(batch, lungs)


def test_the_paper_s_form_ends_where_the_loss_is_no_number(tmp_path: Path) -> None:
    network = BreaksWhileTraining(to_nothing=True)
    network.calls = -2
    found = _range_per_epoch(network, SETS, QUICK, tmp_path / "late")
    assert len(found.rates) == 1
    at_once = BreaksWhileTraining(to_nothing=True)
    at_once.calls = 9
    with pytest.raises(DivergedError):
        _range_per_epoch(at_once, SETS, QUICK, tmp_path / "at once")


RATES = tuple(10.0**n for n in range(-8, 0))


@pytest.mark.parametrize(
    ("losses", "suggestion"),
    [
        # Lowest at 1e-3: a tenth of it comes before half of the fall does.
        ((1.0, 1.0, 1.0, 0.9, 0.8, 0.1, 2.0, 9.0), 1e-4),
        # It goes on falling to the end, and half of the fall is done at 1e-5.
        ((1.0, 1.0, 0.9, 0.4, 0.2, 0.1, 0.1, 0.05), 1e-5),
    ],
)
def test_the_suggestion_is_the_lower_of_a_tenth_of_the_best_rate_and_half_of_the_fall(
    losses: tuple[float, ...], suggestion: float
) -> None:
    found = RangeTest(RATES, losses, losses, is_per_epoch=False)
    assert found.suggestion == pytest.approx(suggestion)


def test_a_flat_curve_suggests_nothing_and_all_of_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = RangeTest.of(RATES, (1.0, 1.02, 0.97, 1.01, 0.96, 0.98, 1.0, 1.4), is_per_epoch=True)
    assert found.suggestion is None
    _show_range_test(found, [])
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("! No learning rate is suggested: the curve is flat")
    assert "Suggested" not in said
    table, *figures = write_range_test(found, tmp_path)
    assert len(table.read_text().splitlines()) == 9
    assert all(figure.stat().st_size > 1000 for figure in figures)


@pytest.mark.parametrize("first", [9.0, 0.01])
def test_one_noisy_first_loss_changes_no_suggestion(first: float) -> None:
    rates = [10 ** (-8 + 8 * step / 99) for step in range(100)]
    falling = [1.1 if step < 50 else max(1.1 - 0.03 * (step - 50), 0.3) for step in range(100)]
    usual = RangeTest.of(rates, falling, is_per_epoch=False)
    noisy = RangeTest.of(rates, [first, *falling[1:]], is_per_epoch=False)
    assert usual.suggestion is not None
    assert noisy.suggestion == pytest.approx(usual.suggestion)
    flat = RangeTest.of(rates, [first, *[1.1] * 99], is_per_epoch=False)
    assert flat.suggestion is None


def test_smoothing_keeps_a_constant_and_damps_a_spike() -> None:
    assert _smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert max(_smooth([1.0] * 10 + [2.0])) == pytest.approx(1.2, abs=0.05)


def test_a_range_test_by_several_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config = Path(__file__).resolve().parents[2] / "configs" / "roi_resnet18_recommended.yaml"
    plan = Plan(read_settings(config), tmp_path / "scans.csv", tmp_path / "out")
    with pytest.raises(TrainingError, match="Start it without torchrun"):
        run_range_test(plan)


def test_the_quick_form_rises_by_one_factor_from_1e_8_to_1() -> None:
    told: list[Progress] = []
    found = _range_per_step(
        MeanThenLinear(),
        SETS,
        QUICK,
        augmentation=_Augmentation(),
        steps=41,
        after_step=told.append,
    )
    assert [progress.done for progress in told] == list(range(1, 42))
    assert found.rates[0] == pytest.approx(1e-8)
    assert found.rates[-1] == pytest.approx(1.0)
    factors = [b / a for a, b in zip(found.rates, found.rates[1:], strict=False)]
    assert factors == pytest.approx([factors[0]] * 40)
    assert min(found.losses[30:]) < found.losses[0]


def test_the_same_seed_gives_the_same_curve() -> None:
    first, second = (_range_per_step(MeanThenLinear(), SETS, QUICK, steps=10) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("to_nothing", "length"), [(True, 5), (False, None)])
def test_the_quick_form_ends_where_the_loss_breaks(to_nothing: bool, length: int | None) -> None:
    found = _range_per_step(Breaks(to_nothing=to_nothing), SETS, QUICK, steps=100)
    assert len(found.rates) < 20
    if length is None:
        assert found.smoothed[-1] > _BREAKS_AT * min(found.smoothed)
    else:
        assert len(found.rates) == length


def test_a_first_loss_that_is_no_number_is_an_error() -> None:
    broken = Breaks(to_nothing=True)
    broken.calls = 9
    with pytest.raises(DivergedError, match="first loss is no number"):
        _range_per_step(broken, SETS, QUICK, steps=10)


def few_ill() -> LabelledSets:
    """As `SETS`, with one class far more often than the other."""
    training = Brightness(24)
    training.labels = [0] * 20 + [1] * 4
    return LabelledSets(training, Brightness(8), num_classes=2)


@pytest.mark.parametrize(
    "chosen",
    [
        {"class_weights": "balanced"},
        {"label_smoothing": 0.3},
        {"mixup_alpha": 0.4},
        {"precision": "bf16"},
        {"sampling": "balanced"},
        {},
    ],
    ids=lambda chosen: next(iter(chosen), "accumulation"),
)
def test_the_first_loss_is_that_of_a_training_s_first_step(
    chosen: dict[str, object], tmp_path: Path
) -> None:
    # An epoch is one step of six passes, so that its loss is that of the weights drawn.
    whole_epoch = QUICK.model_copy(update={"accumulation": 6, "epochs": 1})
    settings = whole_epoch.model_copy(update=chosen)
    first = _range_per_step(MeanThenLinear(), few_ill(), settings, steps=2).losses[0]
    train(MeanThenLinear(), few_ill(), settings, tmp_path)
    logged = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert first == pytest.approx(logged["training_loss"], abs=1e-6)
    if chosen:
        plain = _range_per_step(MeanThenLinear(), few_ill(), whole_epoch, steps=2).losses[0]
        assert first != pytest.approx(plain, abs=1e-6)


class TwoLayers(nn.Module):
    """No BatchNorm and no dropout: a batch in parts has the gradient of the whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv3d(1, 3, 2), nn.Conv3d(3, 2, 2)

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(self.first(batch)).mean(dim=(2, 3, 4))
        return found


def test_accumulated_passes_make_one_step_as_a_batch_of_all_does() -> None:
    weights = []
    for size, passes in ((24, 1), (4, 6)):
        network = TwoLayers()
        chosen = QUICK.model_copy(update={"batch_size": size, "accumulation": passes})
        assert len(_range_per_step(network, SETS, chosen, steps=3).losses) == 3
        weights.append(network.second.weight.detach())
    torch.testing.assert_close(*weights)


def test_volumes_and_weights_lie_in_memory_as_in_a_training() -> None:
    seen: list[bool] = []
    network = TwoLayers()
    network.second.register_forward_pre_hook(
        lambda _module, inputs: seen.append(
            inputs[0].is_contiguous(memory_format=torch.channels_last_3d)
        )
    )
    _range_per_step(network, SETS, QUICK, steps=2)
    assert network.second.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert seen == [True, True]


def test_recomputing_a_network_without_blocks_is_refused_as_by_a_training() -> None:
    chosen = QUICK.model_copy(update={"checkpoint_activations": True})
    with pytest.raises(TrainingError, match="this one has no blocks"):
        _range_per_step(MeanThenLinear(), SETS, chosen, steps=2)


def test_settings_without_effect_are_said_where_they_were_chosen() -> None:
    said: list[str] = []
    _note_left_out(QUICK, said.append)
    assert said == []
    _note_left_out(QUICK.model_copy(update={"batch_norm_warm_up": True}), said.append)
    (line,) = said
    assert "leaves out training.batch_norm_warm_up (it changes" in line
    assert "compile" not in line


def test_the_quick_form_leaves_frozen_parts_alone_and_multiplies_rates() -> None:
    frozen, slow, plain = MeanThenLinear(), MeanThenLinear(), MeanThenLinear()
    before = plain.linear.weight.clone()
    for network, changes in ((frozen, {"freeze": ("linear",)}), (slow, {"rates": {"linear": 0.5}})):
        _range_per_step(network, SETS, QUICK.model_copy(update=changes), steps=2)
    _range_per_step(plain, SETS, QUICK, steps=2)
    assert torch.equal(frozen.linear.weight, before)
    moved = [(network.linear.weight - before).abs().max() for network in (slow, plain)]
    assert 0 < moved[0] < moved[1]


def test_every_setting_is_honoured_or_in_a_table_and_the_manual_names_those_left_out() -> None:
    assert set(TrainingSettings.model_fields) == {*HONOURED, *_OWN, *_LEFT_OUT}
    manual = (DOCS / "training.md").read_text(encoding="utf-8")
    said = manual[manual.index("## Find a learning rate") : manual.index("## Search for settings")]
    assert all(f"`training.{name}`" in said for name in _LEFT_OUT)
