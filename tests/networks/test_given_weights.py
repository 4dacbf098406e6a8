"""Given weights: what of a file fits, what does not, what is not a weights file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from chestct.errors import NetworkError
from chestct.networks import build_network
from chestct.networks.blocks import PooledNetwork
from chestct.networks.given_weights import load_given_weights


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
    report = load_given_weights(network, path)
    after = network.state_dict()
    assert torch.equal(after[loaded], tensors[f"module.{loaded}"])
    assert torch.equal(after["fc1.weight"], before["fc1.weight"])
    assert torch.equal(after[shortcut], before[shortcut])
    assert report.unused == ("conv_seg.0.weight",)
    assert report.missing[0] == shortcut
    assert not any("fc" in name for name in report.missing)
    assert len(report.taken) == len(tensors) - 1
    assert shortcut in str(report)
    assert "conv_seg.0.weight" in str(report)


def test_with_projections_nothing_is_missing(tmp_path: Path) -> None:
    save_file(medicalnet_tensors(with_shortcuts=True), tmp_path / "a.safetensors")
    network = build_network("roi_resnet18", 1, 3, {"width": 4})
    assert load_given_weights(network, tmp_path / "a.safetensors").missing == ()


def test_old_files_without_step_counters_lack_nothing(tmp_path: Path) -> None:
    tensors = medicalnet_tensors(with_shortcuts=True)
    kept = {name: value for name, value in tensors.items() if "num_batches" not in name}
    save_file(kept, tmp_path / "a.safetensors")
    network = build_network("roi_resnet18", 1, 3, {"width": 4})
    assert load_given_weights(network, tmp_path / "a.safetensors").missing == ()


def test_weights_of_another_width_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    save_file(medicalnet_tensors(with_shortcuts=True), tmp_path / "a.safetensors")
    network = build_network("roi_resnet18", 1, 3, {"width": 8})
    before = network.conv1.weight.clone()
    with pytest.raises(NetworkError, match=r"conv1.* as \(4, .*, this network has \(8, "):
        load_given_weights(network, tmp_path / "a.safetensors")
    assert torch.equal(network.conv1.weight, before)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(NetworkError, match="No tensor of"):
        load_given_weights(
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
        load_given_weights(build_network("roi_resnet18", 1, 3, {"width": 4}), path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, tmp_path / "a.pth")
    with pytest.raises(NetworkError, match="not a readable file"):
        load_given_weights(build_network("roi_resnet18", 1, 3, {"width": 4}), tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "a.pth")
    with pytest.raises(NetworkError, match="No tensor of"):
        load_given_weights(build_network("roi_resnet18", 1, 3, {"width": 4}), tmp_path / "a.pth")


def test_a_missing_file_and_a_huge_one_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network("roi_resnet18", 1, 3, {"width": 4})
    with pytest.raises(NetworkError, match="no weights file"):
        load_given_weights(network, tmp_path / "a.pth")
    monkeypatch.setattr("chestct.networks.given_weights.MAX_FILE_BYTES", 3)
    (tmp_path / "a.pth").write_bytes(b"four")
    with pytest.raises(NetworkError, match="over the 3"):
        load_given_weights(network, tmp_path / "a.pth")


def drawn(**settings: object) -> torch.nn.Module:
    return build_network("roi_resnet18", 1, 3, {"width": 4, **settings})


def save(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({name: value.clone() for name, value in tensors.items()}, path)
    return path


def test_what_all_names_have_before_them_is_taken_off(tmp_path: Path) -> None:
    own = drawn().state_dict()
    file = save({f"net.encoder.{n}": v for n, v in own.items()}, tmp_path / "a.safetensors")
    network = drawn()
    report = load_given_weights(network, file)
    assert torch.equal(network.state_dict()["layer4.1.conv2.weight"], own["layer4.1.conv2.weight"])
    assert report.missing == ()
    assert all(name.startswith("fc") for name in report.unused)


@pytest.mark.parametrize("section", ["state_dict", "model_state_dict", "model"])
def test_tensors_are_found_where_checkpoints_keep_them(tmp_path: Path, section: str) -> None:
    torch.save({section: drawn().state_dict(), "epoch": 3}, tmp_path / "a.pt")
    assert load_given_weights(drawn(), tmp_path / "a.pt").missing == ()


@pytest.mark.parametrize(
    ("with_head", "settings", "is_taken"),
    [(True, {}, True), (False, {}, False), (True, {"head_units": 8}, False)],
)
def test_a_head_is_taken_where_it_is_wanted_and_fits_and_else_as_a_whole_left_drawn(
    tmp_path: Path, with_head: bool, settings: dict[str, object], is_taken: bool
) -> None:
    file = save(drawn().state_dict(), tmp_path / "a.safetensors")
    network = drawn(**settings)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = load_given_weights(network, file, with_head=with_head)
    assert report.has_head is is_taken
    assert ("The head was taken." in str(report)) is is_taken
    for name in ("fc1.weight", "fc2.bias"):
        assert torch.equal(network.state_dict()[name], before[name]) is not is_taken, name


def test_values_that_are_no_numbers_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    tensors = drawn().state_dict()
    tensors["layer3.0.bn1.weight"] = torch.full((16,), float("nan"))
    file, network = save(tensors, tmp_path / "a.safetensors"), drawn()
    before = network.conv1.weight.clone()
    with pytest.raises(NetworkError, match=r"'layer3.0.bn1.weight' holds values .* not finite"):
        load_given_weights(network, file)
    assert torch.equal(network.conv1.weight, before)


def test_a_file_of_another_depth_is_refused(tmp_path: Path) -> None:
    deep = build_network("roi_resnet50", 1, 3, {"width": 4}).state_dict()
    file = save(deep, tmp_path / "a.safetensors")
    with pytest.raises(NetworkError, match=r"conv1.weight' as .* this network has"):
        load_given_weights(drawn(), file)


def test_a_file_in_which_nothing_fits_is_said_with_what_was_expected(tmp_path: Path) -> None:
    file = save({"encoder.weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(NetworkError) as error:
        load_given_weights(drawn(), file)
    said = str(error.value)
    assert "expected 100 tensors (conv1.weight, bn1.weight, bn1.bias, ...)" in said
    assert "it holds 1 tensor (encoder.weight)" in said
    assert "set network.name" in said


class HeadAlone(PooledNetwork):
    HEAD = ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)


def test_a_network_that_is_all_head_takes_a_head_or_nothing(tmp_path: Path) -> None:
    network = HeadAlone()
    file = save(network.state_dict(), tmp_path / "a.safetensors")
    assert load_given_weights(network, file, with_head=True).has_head
    with pytest.raises(NetworkError, match="a classifier of the same classes and settings alone"):
        load_given_weights(network, file)


def test_the_record_counts_and_names_the_first(tmp_path: Path) -> None:
    file = save(drawn().state_dict(), tmp_path / "a.safetensors")
    record = load_given_weights(drawn(), file).as_record()
    assert record["missing"] == {"number": 0, "first": []}
    assert record["unused"] == {"number": 4, "first": ["fc1.bias", "fc1.weight", "fc2.bias"]}
    assert record["has_head"] is False
