from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chestct.errors import NetworkError
from chestct.extras import is_installed
from chestct.networks.slices import (
    SLICE_NETWORKS,
    WEIGHTS_NAME,
    SliceNetwork,
    build_slice_network,
    find_weights,
    load_backbone_weights,
)


@pytest.fixture
def network() -> SliceNetwork:
    torch.manual_seed(3)
    return build_slice_network("mobilenet_v2", 2, {"size": 64})


def test_a_files_weights_reach_the_backbone_and_nothing_else(
    network: SliceNetwork, weights: Path
) -> None:
    head = {name: value.clone() for name, value in network.head.state_dict().items()}
    load_backbone_weights(network, weights)
    stored = load_file(weights)
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, stored[name]), name
    for name, value in network.head.state_dict().items():
        assert torch.equal(value, head[name]), name


@pytest.mark.skipif(not is_installed("timm"), reason="needs timm: see the slices step of .ci/run")
def test_the_hubs_cache_is_looked_into_and_nothing_is_fetched(
    network: SliceNetwork, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = SLICE_NETWORKS["mobilenet_v2"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NetworkError) as refusal:
        find_weights("mobilenet_v2", "imagenet")
    message = str(refusal.value)
    assert f"hf download {facts.weights_id} {WEIGHTS_NAME}" in message
    assert "--weights FILE" in message
    repository = tmp_path / f"models--{facts.weights_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1234")
    (snapshot / WEIGHTS_NAME).write_bytes(weights.read_bytes())
    found = find_weights("mobilenet_v2", "imagenet")
    assert found == snapshot / WEIGHTS_NAME
    load_backbone_weights(network, found)


def changed(weights: Path, folder: Path, change: str) -> Path:
    tensors = load_file(weights)
    if change == "missing":
        del tensors["conv_head.weight"]
    elif change == "shape":
        tensors["conv_head.weight"] = tensors["conv_head.weight"][:, :3].contiguous()
    elif change == "left over":
        tensors["blocks.9.weight"] = torch.zeros(1)
    elif change == "not finite":
        tensors["conv_head.weight"][0, 0] = float("nan")
    path = folder / "changed.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "lacks 'conv_head.weight'"),
        ("shape", "another shape for 'conv_head.weight'"),
        ("left over", "too many, such as 'blocks.9.weight'"),
        ("not finite", "'conv_head.weight' holds values that are not finite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_tensor(
    network: SliceNetwork, weights: Path, tmp_path: Path, change: str, said: str
) -> None:
    with pytest.raises(NetworkError, match=said):
        load_backbone_weights(network, changed(weights, tmp_path, change))


@pytest.mark.skipif(not is_installed("timm"), reason="needs timm: see the slices step of .ci/run")
def test_the_weights_of_another_network_are_refused_by_both_names(weights: Path) -> None:
    with torch.device("meta"):
        densenet = build_slice_network("densenet169", 2)
    with pytest.raises(NetworkError, match=r"'mobilenet.safetensors' does not hold .* densenet169"):
        load_backbone_weights(densenet, weights)


def test_a_damaged_file_and_one_that_could_run_code_are_refused(
    network: SliceNetwork, tmp_path: Path
) -> None:
    broken, pickled = tmp_path / "broken.safetensors", tmp_path / "weights.pth"
    broken.write_bytes(b"\x01\x02" * 20)
    torch.save(network, pickled)
    with pytest.raises(NetworkError, match=r"broken.safetensors.*Get it again"):
        load_backbone_weights(network, broken)
    with pytest.raises(NetworkError, match=r"weights.pth.*not a readable file of weights"):
        load_backbone_weights(network, pickled)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.bin"])
@pytest.mark.parametrize("section", ["", "state_dict"])
def test_a_plain_state_dict_gives_the_same_weights(
    network: SliceNetwork, weights: Path, tmp_path: Path, name: str, section: str
) -> None:
    stored = load_file(weights)
    torch.save({section: stored} if section else stored, tmp_path / name)
    load_backbone_weights(network, tmp_path / name)
    for part, value in network.backbone.state_dict().items():
        assert torch.equal(value, stored[part]), part
