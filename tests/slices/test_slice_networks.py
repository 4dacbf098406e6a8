from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from chestct.errors import NetworkError, UnknownNameError
from chestct.extras import import_extra, is_installed
from chestct.networks.slices import (
    SLICE_NETWORKS,
    SliceNetwork,
    build_slice_network,
    find_weights,
    mean_of,
)

needs_timm = pytest.mark.skipif(
    not is_installed("timm"), reason="needs timm: see the slices step of .ci/run"
)

# From architectures.md, section 4: flattened, trainable, backbone in Keras.
PUBLISHED = {
    "vgg19": (25_088, 100_361, 20_024_384),
    "inception_v3": (131_072, 524_297, 21_802_784),
    "resnet50_v2": (100_352, 401_417, 23_564_800),
    "xception": (204_800, 819_209, 20_861_480),
    "mobilenet_v2": (62_720, 250_889, 2_257_984),
    "densenet169": (81_536, 326_153, 12_642_880),
}
# What timm's networks have more or less than those of Keras, as SLICE_NETWORKS says.
DIFFERENCES = {"inception_v3": 17_216, "resnet50_v2": -19_008}


def on_meta(name: str, **settings: object) -> SliceNetwork:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return build_slice_network(name, 2, settings)


def num_numbers(module: nn.Module) -> int:
    """Weights and moving statistics, as Keras counts them."""
    state = module.state_dict()
    return sum(v.numel() for k, v in state.items() if not k.endswith("num_batches_tracked"))


@needs_timm
@pytest.mark.parametrize("name", SLICE_NETWORKS)
def test_the_published_head_learns_exactly_the_published_number(name: str) -> None:
    flattened, trainable, backbone = PUBLISHED[name]
    network = on_meta(name)
    assert network.num_trainable == trainable
    first = network.head[1]
    assert isinstance(first, nn.Linear)
    assert first.in_features == flattened
    assert num_numbers(network.backbone) == backbone + DIFFERENCES.get(name, 0)
    assert bool(SLICE_NETWORKS[name].difference) == (name in DIFFERENCES)


@needs_timm
@pytest.mark.parametrize("name", SLICE_NETWORKS)
def test_sizes_and_scaling_are_those_of_timms_weights(name: str) -> None:
    timm = import_extra("timm", extra="slices")
    facts = SLICE_NETWORKS[name]
    told = timm.get_pretrained_cfg(facts.timm_name)
    assert (tuple(told.mean), tuple(told.std)) == (facts.mean, facts.std)
    assert facts.weights_id.endswith(f"{facts.timm_name}.{told.tag}")
    assert told.hf_hub_id in (None, "timm/", facts.weights_id)
    with torch.device("meta"):
        parts = timm.create_model(facts.timm_name, pretrained=False).state_dict()
    cut_off = [part for part in parts if part.startswith(facts.classifier)]
    kept = {part.removeprefix("backbone.") for part in on_meta(name).state_dict()}
    assert set(parts) - set(cut_off) == {part for part in kept if not part.startswith("head.")}


@needs_timm
@pytest.mark.parametrize("name", SLICE_NETWORKS)
def test_each_tuned_block_adds_weights_at_the_end_of_the_backbone(name: str) -> None:
    counts = []
    for tuned in range(4):
        network = on_meta(name, head="recommended", tuned_blocks=tuned)
        learns = [each.requires_grad for each in network.backbone.parameters()]
        counts.append(sum(learns))
        assert not learns[0]
    assert counts[0] == 0
    assert counts == sorted(set(counts))
    prefixes = [prefix for block in SLICE_NETWORKS[name].last_blocks for prefix in block]
    own = list(network.backbone.state_dict())
    assert all(any(part.startswith(prefix) for part in own) for prefix in prefixes)


@pytest.fixture(scope="module")
def small() -> SliceNetwork:
    torch.manual_seed(0)
    return build_slice_network("mobilenet_v2", 2, {"size": 64, "head": "published"})


def test_the_backbone_stays_in_inference_mode_and_only_the_head_learns(
    small: SliceNetwork,
) -> None:
    before = {name: value.clone() for name, value in small.backbone.state_dict().items()}
    small.train()
    assert not any(module.training for module in small.backbone.modules())
    assert all(module.training for module in small.head.modules())
    logits = small(torch.rand(3, 1, 1, 64, 64), torch.ones(3, 1, 1, 64, 64))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1])).backward()
    assert all(parameter.grad is None for parameter in small.backbone.parameters())
    assert all(parameter.grad is not None for parameter in small.head.parameters())
    for name, value in small.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("tuned", "moved"), [(0, []), (1, ["bn2"]), ("all", ["bn1", "bn2"])])
def test_statistics_that_may_be_learned_move_in_tuned_blocks_alone(
    tuned: int | str, moved: list[str]
) -> None:
    settings = {"size": 64, "tuned_blocks": tuned, "batch_norm_statistics": "learned"}
    network = build_slice_network("mobilenet_v2", 2, settings)
    norms = {name: network.backbone.get_submodule(name) for name in ("bn1", "bn2")}
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    network.train()(torch.rand(3, 1, 1, 64, 64))
    network.eval()(torch.rand(3, 1, 1, 64, 64))
    after = {name: norm.running_mean.clone() for name, norm in norms.items()}
    assert [name for name in norms if not torch.equal(before[name], after[name])] == moved


def test_all_of_a_backbone_learns_where_it_is_wanted() -> None:
    network = build_slice_network("mobilenet_v2", 2, {"size": 64, "tuned_blocks": "all"})
    logits = network.train()(torch.rand(3, 1, 1, 64, 64))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1])).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    # As published, its statistics stand still.
    assert not any(module.training for module in network.backbone.modules())


def test_several_members_answer_with_the_mean_of_their_logits() -> None:
    torch.manual_seed(1)
    settings = {"size": 64, "head": "recommended", "scaling": "weights"}
    members = [build_slice_network("mobilenet_v2", 3, settings).eval() for _ in range(3)]
    batch = torch.rand(2, 1, 1, 64, 64)
    whole = mean_of(members)
    with torch.no_grad():
        wanted = torch.stack([each(batch) for each in members]).mean(0)
        found, features = whole.eval()(batch), whole.features(batch)
        own = torch.cat([each.features(batch) for each in members], dim=1)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(features, own)
    again = build_slice_network("mobilenet_v2", 3, {**settings, "members": 3}).eval()
    again.load_state_dict(whole.state_dict())
    with torch.no_grad():
        assert torch.equal(again(batch), found)


@pytest.mark.parametrize("members", [0, 21])
def test_an_impossible_number_of_members_is_refused(members: int) -> None:
    with pytest.raises(NetworkError, match="members"):
        build_slice_network("mobilenet_v2", 2, {"members": members})


def test_two_classes_come_from_one_unit(small: SliceNetwork) -> None:
    with torch.no_grad():
        logits = small.eval()(torch.rand(2, 1, 1, 64, 64))
    assert logits.shape == (2, 2)
    assert not logits[:, 0].any()


def test_grey_and_the_same_grey_in_three_channels_give_the_same_logits(
    small: SliceNetwork,
) -> None:
    batch = torch.rand(2, 1, 1, 64, 64)
    before = batch.clone()
    with torch.no_grad():
        grey, colour = small.eval()(batch), small(batch.expand(-1, 3, -1, -1, -1))
    assert torch.equal(grey, colour)
    assert torch.equal(batch, before)


def test_the_heads_first_layer_sees_channels_innermost(small: SliceNetwork) -> None:
    features = torch.arange(2 * 3 * 4, dtype=torch.float32).view(1, 2, 3, 4)
    assert small.head[0](features)[0, :4].tolist() == [0, 12, 1, 13]


def test_scaling_of_the_weights_is_that_of_values_scaled_by_hand() -> None:
    torch.manual_seed(0)
    own = build_slice_network("mobilenet_v2", 2, {"size": 64, "scaling": "weights"}).eval()
    plain = build_slice_network("mobilenet_v2", 2, {"size": 64}).eval()
    plain.load_state_dict(own.state_dict())
    other = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 2], "size": 64, "scaling": "weights"}
    given = build_slice_network("mobilenet_v2", 2, other).eval()
    given.load_state_dict(own.state_dict())
    facts = SLICE_NETWORKS["mobilenet_v2"]
    batch = torch.rand(2, 1, 1, 64, 64)
    mean = torch.tensor(facts.mean).view(1, 3, 1, 1, 1)
    std = torch.tensor(facts.std).view(1, 3, 1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(own(batch), plain((batch - mean) / std))
        mean, std = (torch.tensor(other[name]).view(1, 3, 1, 1, 1) for name in ("mean", "std"))
        torch.testing.assert_close(given(batch), plain((batch - mean) / std))


def test_a_network_trained_in_any_memory_layout_gives_the_same_logits(
    small: SliceNetwork,
) -> None:
    batch = torch.rand(2, 1, 1, 64, 64)
    with torch.no_grad():
        before = small.eval()(batch)
        moved = small.to(memory_format=torch.channels_last_3d)
        after = moved(batch.contiguous(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1, 63, 64), (1, 1, 2, 64, 64), (1, 2, 1, 64, 64)])
def test_another_input_is_refused_with_its_size(
    small: SliceNetwork, shape: tuple[int, ...]
) -> None:
    with pytest.raises(NetworkError, match=str(shape[2])):
        small(torch.zeros(shape))


@needs_timm
def test_an_input_too_small_for_the_layers_is_refused() -> None:
    with pytest.raises(NetworkError, match="at least 75 rows"):
        on_meta("inception_v3", size=64)


@pytest.fixture
def resnet() -> SliceNetwork:
    return on_meta("resnet18", head="recommended", scaling="weights")


def test_a_network_by_timms_name_takes_what_timm_says_of_its_weights(
    resnet: SliceNetwork, tmp_path: Path
) -> None:
    assert resnet.size == 224
    assert resnet.scaling == {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert resnet.facts.weights_id == "timm/resnet18.a1_in1k"
    assert resnet.num_trainable == 513
    with pytest.raises(NetworkError, match=r"'timm/resnet18\.a1_in1k'"):
        find_weights("resnet18", str(tmp_path / "resnet18.pth"))


@needs_timm
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "convnext_atto", "swin_s3_tiny_224"])
def test_blocks_of_any_network_are_tuned_from_its_end(name: str) -> None:
    networks = [on_meta(name, head="recommended", tuned_blocks=n) for n in (0, 1, 2, 3, "all")]
    learns = [sum(p.requires_grad for p in each.backbone.parameters()) for each in networks]
    assert learns == sorted(set(learns))
    assert learns[-1] == len(list(networks[0].backbone.parameters()))
    last = [p.ndim for p in networks[1].backbone.parameters() if p.requires_grad]
    assert max(last) > 1, "a normalisation alone is no block"


@needs_timm
def test_channels_come_first_whatever_a_network_has() -> None:
    shape = (
        on_meta("swin_s3_tiny_224").features(torch.zeros(1, 1, 1, 224, 224, device="meta")).shape
    )
    assert shape == (1, 768, 7, 7)


@needs_timm
@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("vit_tiny_patch16_224", {}, "gives tokens and no map of features"),
        ("swin_s3_tiny_224", {"size": 100}, "cannot take inputs of 100 rows"),
        ("poolformer_s12", {"tuned_blocks": 1}, "set tuned_blocks to 0 or all"),
        ("resnet18", {"padding": "same"}, "leave 'padding' out"),
        ("hf-hub:timm/resnet18.a1_in1k", {}, "any network of timm by its name"),
        ("resnet18.mine", {}, "the nearest are resnet18, "),
    ],
)
def test_what_timm_has_and_a_slice_cannot_use_is_refused_with_a_sentence(
    name: str, settings: dict[str, object], said: str
) -> None:
    with pytest.raises((NetworkError, UnknownNameError), match=said):
        on_meta(name, **settings)


@needs_timm
def test_padding_can_be_that_of_other_weights() -> None:
    maps = {}
    for padding in ("own", "same", "symmetric"):
        torch.manual_seed(0)
        settings = {"size": 64, "padding": padding}
        network = build_slice_network("mobilenet_v2", 2, settings).eval()
        with torch.no_grad():
            maps[padding] = network.features(torch.rand(1, 1, 1, 64, 64).round())
    torch.testing.assert_close(maps["own"], maps["symmetric"])
    assert not torch.allclose(maps["own"], maps["same"])
