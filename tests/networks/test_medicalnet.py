"""MedicalNet's weights: what fits, what does not, what is not a weights file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from chestct.errors import NetworkError
from chestct.networks import build_network
from chestct.networks.medicalnet import load_medicalnet_weights


def medicalnet_tensors(*, with_shortcuts: bool) -> dict[str, torch.Tensor]:
    """A state dict with MedicalNet's names for a narrow ResNet-18, saved from DataParallel."""
    torch.manual_seed(1)
    tensors = {}
    for name, tensor in build_network("roi_resnet18", 1, 3, {"width": 4}).state_dict().items():
        is_shortcut = "downsample" in name
        if not name.startswith("fc") and (with_shortcuts or not is_shortcut):
            tensors[f"module.{name}"] = tensor.clone()
    tensors["module.conv_seg.0.weight"] = torch.zeros(3)
    return tensors


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_backbone_weights_are_copied_and_the_rest_is_reported(tmp_path: Path, suffix: str) -> None:
    tensors = medicalnet_tensors(with_shortcuts=False)
    path = tmp_path / f"resnet_18{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": tensors, "epoch": 7}, path)
    else:
        save_file(tensors, path)
    network = build_network("roi_resnet18", 1, 3, {"width": 4})
    shortcut, loaded = "layer2.0.downsample.0.weight", "layer3.1.conv2.weight"
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = load_medicalnet_weights(network, path)
    after = network.state_dict()
    assert torch.equal(after[loaded], tensors[f"module.{loaded}"])
    assert torch.equal(after["fc1.weight"], before["fc1.weight"])
    assert torch.equal(after[shortcut], before[shortcut])
    assert report.unexpected == ("conv_seg.0.weight",)
    assert report.missing[0] == shortcut
    assert not any("fc" in name for name in report.missing)
    assert len(report.loaded) == len(tensors) - 1
    assert shortcut in str(report)
    assert "conv_seg.0.weight" in str(report)


def test_with_projections_nothing_is_missing(tmp_path: Path) -> None:
    save_file(medicalnet_tensors(with_shortcuts=True), tmp_path / "a.safetensors")
    network = build_network("roi_resnet18", 1, 3, {"width": 4})
    assert load_medicalnet_weights(network, tmp_path / "a.safetensors").missing == ()


def test_old_files_without_step_counters_lack_nothing(tmp_path: Path) -> None:
    tensors = medicalnet_tensors(with_shortcuts=True)
    kept = {name: value for name, value in tensors.items() if "num_batches" not in name}
    save_file(kept, tmp_path / "a.safetensors")
    network = build_network("roi_resnet18", 1, 3, {"width": 4})
    assert load_medicalnet_weights(network, tmp_path / "a.safetensors").missing == ()


def test_weights_of_another_width_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    save_file(medicalnet_tensors(with_shortcuts=True), tmp_path / "a.safetensors")
    network = build_network("roi_resnet18", 1, 3, {"width": 8})
    before = network.conv1.weight.clone()
    with pytest.raises(NetworkError, match=r"bn1.* as \(4,\), this network has \(8,\)"):
        load_medicalnet_weights(network, tmp_path / "a.safetensors")
    assert torch.equal(network.conv1.weight, before)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(NetworkError, match="No tensor of"):
        load_medicalnet_weights(
            build_network("roi_resnet18", 1, 3, {"width": 4}), tmp_path / "a.safetensors"
        )


class Payload:
    """Something whose unpickling would run code."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02cos\nsystem\n."])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(NetworkError, match="not a readable file"):
        load_medicalnet_weights(build_network("roi_resnet18", 1, 3, {"width": 4}), path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, tmp_path / "a.pth")
    with pytest.raises(NetworkError, match="not a readable file"):
        load_medicalnet_weights(
            build_network("roi_resnet18", 1, 3, {"width": 4}), tmp_path / "a.pth"
        )
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "a.pth")
    with pytest.raises(NetworkError, match="No tensor of"):
        load_medicalnet_weights(
            build_network("roi_resnet18", 1, 3, {"width": 4}), tmp_path / "a.pth"
        )


def test_a_missing_file_and_a_huge_one_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network("roi_resnet18", 1, 3, {"width": 4})
    with pytest.raises(NetworkError, match="no weights file"):
        load_medicalnet_weights(network, tmp_path / "a.pth")
    monkeypatch.setattr("chestct.networks.medicalnet.MAX_FILE_BYTES", 3)
    (tmp_path / "a.pth").write_bytes(b"four")
    with pytest.raises(NetworkError, match="over the 3"):
        load_medicalnet_weights(network, tmp_path / "a.pth")
