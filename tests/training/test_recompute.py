from __future__ import annotations

from pathlib import Path

import pytest
import torch
from brightness import SETS, SETTINGS, MeanThenLinear
from torch import nn
from torch.utils.data import Dataset

from chestct.errors import TrainingError
from chestct.networks import build_network
from chestct.training.loop import train
from chestct.training.run import LabelledSets, recomputing

NETWORKS = {
    "roi_resnet18": {"width": 2, "gating": "all", "head_units": 4},
    "roi_resnet50": {"width": 2, "head_units": 4},
    "maseres": {"input_shape": [14, 14, 14]},
    "segresnet_encoder": {"width": 2, "levels": 3},
    "merlin_encoder": {"depth": 50, "width": 2},
    "colipri_encoder": {"width": 12, "depth": 2, "heads": 2},
}
SIZES = {"maseres": 14, "colipri_encoder": 16}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name, 1, 3, NETWORKS[name]).train()


def step(network: nn.Module, size: int) -> torch.Tensor:
    """Logits of a batch, after the way back."""
    torch.manual_seed(1)
    batch = torch.rand(2, 1, size, size, size)
    logits = network(batch, (batch > 0.2).float())
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    return logits


@pytest.mark.parametrize("name", NETWORKS)
def test_recomputing_changes_neither_logits_nor_gradients_nor_running_statistics(
    name: str,
) -> None:
    plain, spared, size = built(name), built(name), SIZES.get(name, 34)
    expected = step(plain, size)
    with recomputing(spared):
        found = step(spared, size)
    assert torch.equal(found, expected)
    gradients = {key: value.grad for key, value in plain.named_parameters()}
    for key, value in spared.named_parameters():
        assert torch.equal(value.grad, gradients[key]), key
    buffers = dict(plain.named_buffers())
    assert all(torch.equal(value, buffers[key]) for key, value in spared.named_buffers())
    assert not any("forward" in vars(module) for module in spared.modules())


def test_recomputing_keeps_fewer_values_for_the_way_back() -> None:
    def kept_bytes(*, is_wanted: bool) -> int:
        kept: dict[int, int] = {}

        def pack(value: torch.Tensor) -> torch.Tensor:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        network = built("maseres")
        with (
            recomputing(network, is_wanted=is_wanted),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value),
        ):
            network(torch.rand(1, 1, 14, 14, 14), None)
        return sum(kept.values())

    assert kept_bytes(is_wanted=True) < 0.6 * kept_bytes(is_wanted=False)


def test_where_no_gradient_is_wanted_nothing_is_recomputed() -> None:
    network = built("maseres").eval()
    batch = torch.rand(1, 1, 14, 14, 14)
    with torch.inference_mode():
        expected = network(batch, None)
        with recomputing(network):
            assert torch.equal(network(batch, None), expected)


def test_a_network_without_residual_blocks_is_refused(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"checkpoint_activations": True, "workers": 0})
    with pytest.raises(TrainingError, match=r"checkpoint_activations is for residual networks"):
        train(MeanThenLinear(), SETS, settings, tmp_path)


def test_a_run_may_go_on_with_it_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    class Noise(Dataset):
        labels = (0, 1, 2, 0)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
            drawn = torch.rand(1, 34, 34, 34, generator=torch.Generator().manual_seed(index))
            return drawn, torch.ones(1, 34, 34, 34), self.labels[index]

    sets = LabelledSets(Noise(), Noise(), num_classes=3)
    plain = SETTINGS.model_copy(
        update={"epochs": 2, "batch_size": 2, "workers": 0, "keep": "last", "mixup_alpha": 0.0}
    )
    spared = plain.model_copy(update={"checkpoint_activations": True})
    whole, broken = built("roi_resnet18"), built("roi_resnet18")
    train(whole, sets, plain, tmp_path / "whole")

    class Stop(Exception):  # noqa: N818 - no error
        pass

    def stop(_entry: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        train(built("roi_resnet18"), sets, plain, tmp_path / "broken", after_epoch=stop)
    train(broken, sets, spared, tmp_path / "broken")
    first, second = whole.state_dict(), broken.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
