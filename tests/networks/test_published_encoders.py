"""Merlin's and COLIPRI's encoders: their authors' names, sizes and answers.

The answers are those of the authors' own networks with the weights and the input made here by
formula, which they were given in an environment of their own: `merlin.models.i3res.I3ResNet` of
merlin-vlm 0.0.7 around a narrow ResNet-152 of torchvision's blocks, and `Primus` of
dynamic-network-architectures 0.4.4 with timm 1.0.22, as colipri 0.1.3 builds it. Ours were equal to
theirs to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from chestct.errors import NetworkError
from chestct.networks import build_network
from chestct.networks.blocks import Turn, is_in_head
from chestct.networks.given_weights import TakenWeights, load_given_weights

SHAPE = (48, 32, 40)


@dataclass(frozen=True)
class Published:
    """An encoder as its authors publish it.

    Attributes:
        name: Of the network.
        narrow: Settings of the narrow form that was asked.
        prefix: Before the encoder's names in the published file.
        others: Tensors of that file which have no place in the encoder.
        num_tensors: Of the encoder in full size.
        num_weights: Of those the numbers that learn.
        answers: Features at one place, every few channels, by the largest of all.
    """

    name: str
    narrow: Mapping[str, object]
    prefix: str
    others: tuple[str, ...]
    num_tensors: int
    num_weights: int
    answers: tuple[float, ...]


MERLIN = Published(
    "merlin_encoder",
    {"width": 4},
    "encode_image.i3_resnet.",
    (
        "encode_image.i3_resnet.classifier.weight",
        "encode_image.i3_resnet.contrastive_head.bias",
        "encode_text.linear_layer.weight",
        "logit_scale",
    ),
    930,
    117_366_208,
    (0.158238, 0.785530, 0.464298, 0.0, 0.0, 0.0, 0.0),
)
COLIPRI = Published(
    "colipri_encoder",
    {"width": 48, "depth": 3, "heads": 2},
    "image_encoder.backbone.",
    ("image_encoder.projector.weight", "softmax_temperature"),
    372,
    144_085_536,
    (-0.441382, 0.238827, 0.617679, 0.357094, -0.027509, -0.262949),
)
EVERY = pytest.mark.parametrize("published", [MERLIN, COLIPRI], ids=lambda each: each.name)


def by_formula(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same names and shapes: waves, with which signals neither die nor overflow."""
    made = {}
    for number, (name, tensor) in enumerate(sorted(state.items())):
        wave = torch.sin(torch.arange(tensor.numel()) * 0.7 + number).reshape(tensor.shape)
        if not tensor.is_floating_point():
            made[name] = tensor.clone()
        elif tensor.ndim > 1:
            made[name] = wave * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith(("weight", "var")) or "gamma" in name:
            made[name] = 0.6 + 0.3 * wave
        else:
            made[name] = 0.1 * wave
    return made


def scan() -> Tensor:
    """Values from 0 to 1 that look otherwise from each side."""
    places = torch.meshgrid(*(torch.arange(size) for size in SHAPE), indexing="ij")
    depth, height, width = (place / 10 for place in places)
    return (0.5 + 0.5 * torch.sin(depth + 2 * height * width + depth * depth))[None, None]


def encoder_tensors(network: nn.Module, published: Published) -> dict[str, Tensor]:
    """What the authors' encoder holds: ours, and the mask token that COLIPRI's learned with."""
    own = {n: t for n, t in network.state_dict().items() if not is_in_head(network, n)}
    return own | ({"mask_token": torch.zeros(1, 1, 48)} if published is COLIPRI else {})


def with_weights(published: Published, folder: Path, **more: str) -> tuple[nn.Module, TakenWeights]:
    """The narrow network, and what it took of a file with the authors' names."""
    network = build_network(published.name, 1, 2, {**published.narrow, **more}).eval()
    given = by_formula(encoder_tensors(network, published))
    named = {f"{published.prefix}{name}": tensor for name, tensor in given.items()}
    save_file(
        named | {name: torch.ones(3) for name in published.others}, folder / "file.safetensors"
    )
    return network, load_given_weights(network, folder / "file.safetensors")


@EVERY
def test_the_published_names_fit_and_the_answers_are_the_authors(
    published: Published, tmp_path: Path
) -> None:
    network, report = with_weights(published, tmp_path)
    assert report.missing == ()
    left = {f"{published.prefix}{name}" for name in report.unused} | set(report.unused)
    assert left >= set(published.others)
    assert len(report.unused) == len(published.others) + (published is COLIPRI)
    with torch.no_grad():
        features = network.encode(scan())
    found = (features / features.abs().max())[0, :: features.shape[1] // 6, 1, 0, 1]
    torch.testing.assert_close(found, torch.tensor(published.answers), atol=1e-4, rtol=1e-3)


def test_colipri_s_older_axes_give_the_answers_of_the_older_axes(tmp_path: Path) -> None:
    network, _ = with_weights(COLIPRI, tmp_path, axes="SAR")
    with torch.no_grad():
        features = network.encode(scan())
    found = (features / features.abs().max())[0, ::8, 1, 0, 1]
    expected = [-0.372461, 0.084273, 0.597239, 0.559939, -0.013774, -0.215637]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-3)


@EVERY
def test_it_is_as_large_as_the_authors(published: Published) -> None:
    with torch.device("meta"):
        network = build_network(published.name, 1, 3)
    own = [n for n in network.state_dict() if not is_in_head(network, n)]
    learned = sum(p.numel() for n, p in network.named_parameters() if not is_in_head(network, n))
    assert (len(own), learned) == (published.num_tensors, published.num_weights)


@pytest.mark.parametrize("axes", ["RAS", "SRA", "SAR", "IPL", "SPL"])
def test_a_turn_shows_the_named_ends_and_comes_back(axes: str) -> None:
    # Where a voxel lies: to the head, to the back, to the left.
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (2, 3, 4)), indexing="ij"))
    places = places.float()
    turned = Turn(axes)(places[None])
    for axis, letter in enumerate(axes):
        channel, sign = {"S": (0, 1), "P": (1, 1), "L": (2, 1)}.get(letter) or {
            "I": (0, -1),
            "A": (1, -1),
            "R": (2, -1),
        }[letter]
        assert (turned[0, channel].diff(dim=axis) == sign).all()
    assert torch.equal(Turn(axes, is_back=True)(turned)[0], places)


@pytest.mark.parametrize("axes", ["RA", "RAL", "ras", "RASS"])
def test_axes_that_are_none_are_refused(axes: str) -> None:
    with pytest.raises(NetworkError, match=f"not '{axes}'"):
        build_network("colipri_encoder", 1, 2, {**COLIPRI.narrow, "axes": axes})


def test_a_size_that_is_no_number_of_patches_is_refused() -> None:
    network = build_network("colipri_encoder", 1, 2, COLIPRI.narrow)
    with pytest.raises(NetworkError, match=r"multiple of 8 voxels .* not \(16, 20, 16\)"):
        network(torch.zeros(1, 1, 16, 20, 16))


def test_a_depth_that_no_resnet_of_bottlenecks_has_is_refused() -> None:
    with pytest.raises(NetworkError, match="50 or 101 or 152, not 34"):
        build_network("merlin_encoder", 1, 2, {"depth": 34})


def test_heads_that_cannot_turn_along_three_axes_are_refused() -> None:
    with pytest.raises(NetworkError, match=r"multiple of six times 'heads' \(2\), not 46"):
        build_network("colipri_encoder", 1, 2, {**COLIPRI.narrow, "width": 46})
