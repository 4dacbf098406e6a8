"""Our SegResNet encoder against MONAI's, with the same weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_classifiers import settle_batch_norm

from chestct.networks import build_network
from chestct.networks.given_weights import load_given_weights

with warnings.catch_warnings():
    # MONAI's imports warn of what other packages will change.
    warnings.simplefilter("ignore")
    from monai.networks.nets.segresnet_ds import SegResEncoder, SegResNetDS

BLOCKS = {4: (1, 2, 2, 4), 5: (1, 2, 2, 4, 4)}


@pytest.mark.parametrize("levels", BLOCKS)
def test_features_equal_monais_and_its_state_dict_fits_as_a_whole(
    tmp_path: Path, levels: int
) -> None:
    torch.manual_seed(0)
    theirs = SegResEncoder(init_filters=4, blocks_down=BLOCKS[levels])
    settle_batch_norm(theirs, torch.rand(2, 1, 32, 34, 40))
    save_file(theirs.state_dict(), tmp_path / "encoder.safetensors")
    ours = build_network("segresnet_encoder", 1, 3, {"width": 4, "levels": levels})
    report = load_given_weights(ours, tmp_path / "encoder.safetensors")
    assert (report.missing, report.unused) == ((), ())
    batch = torch.rand(1, 1, 32, 34, 40)
    with torch.no_grad():
        expected = theirs.eval()(batch)[-1]
        found = ours.eval().layers(ours.conv_init(batch))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_encoder_of_a_whole_segresnet_fits(tmp_path: Path) -> None:
    whole = SegResNetDS(init_filters=4, blocks_down=BLOCKS[4])
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    ours = build_network("segresnet_encoder", 1, 3, {"width": 4, "levels": 4})
    report = load_given_weights(ours, tmp_path / "whole.safetensors")
    assert report.missing == ()
    first = "layers.0.blocks.0.conv1.weight"
    assert torch.equal(ours.state_dict()[first], whole.state_dict()[f"encoder.{first}"])


def test_it_is_as_large_as_ct_fm_s() -> None:
    with torch.device("meta"):
        ours = build_network("segresnet_encoder", 1, 3)
    head = sum(p.numel() for name in ("norm", "fc") for p in getattr(ours, name).parameters())
    # As its published checkpoint: 161 tensors, 77,760,992 numbers that learn.
    assert sum(p.numel() for p in ours.parameters()) - head == 77_760_992
    assert len([n for n in ours.state_dict() if not n.startswith(("norm", "fc"))]) == 161
