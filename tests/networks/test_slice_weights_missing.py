"""What is said where timm or weights are missing; runs without timm."""

from __future__ import annotations

from pathlib import Path

import pytest

from chestct.errors import NetworkError, UnknownNameError
from chestct.extras import MissingExtraError, is_installed
from chestct.networks import settings_from
from chestct.networks.slices import (
    SLICE_NETWORKS,
    _SliceSettings,
    build_slice_network,
    find_weights,
)

SIX = ("vgg19", "inception_v3", "resnet50_v2", "xception", "mobilenet_v2", "densenet169")


def test_the_table_holds_the_papers_six_networks_and_input_sizes() -> None:
    assert tuple(SLICE_NETWORKS) == SIX
    sizes = {name: facts.size for name, facts in SLICE_NETWORKS.items()}
    assert [name for name, size in sizes.items() if size == 299] == ["inception_v3", "xception"]
    assert set(sizes.values()) == {224, 299}


@pytest.mark.skipif(is_installed("timm"), reason="timm is installed here")
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet34"])
def test_without_timm_the_extra_is_named(name: str) -> None:
    with pytest.raises(
        (MissingExtraError, UnknownNameError), match=r"pip install 'chestct\[slices\]'"
    ):
        build_slice_network(name, 2)


@pytest.mark.parametrize(
    "call", [lambda: build_slice_network("vgg18", 2), lambda: find_weights("vgg18", "none")]
)
def test_an_unknown_network_is_refused_with_the_nearest_name(call) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'vgg19'"):
        call()


def test_random_weights_are_given_by_name_only() -> None:
    assert find_weights("vgg19", "none") is None


@pytest.mark.parametrize("name", SIX)
def test_a_missing_file_is_named_with_network_repository_and_remedy(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(NetworkError) as refusal:
        find_weights(name, str(tmp_path / "weights.safetensors"))
    message = str(refusal.value)
    for said in (name, "weights.safetensors", SLICE_NETWORKS[name].weights_id, "--weights none"):
        assert said in message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"head": "mine"}, "recommended"),
        ({"scaling": "weight"}, "must be 'published' or 'weights', not 'weight'"),
        ({"tuned_blocks": 4}, "from 0 to 3"),
        ({"tuned_blocks": "most"}, "from 0 to 3 or 'all', not 'most'"),
        ({"batch_norm_statistics": "free"}, "must be 'frozen' or 'learned'"),
        ({"padding": "valid"}, "must be 'own' or 'same' or 'symmetric'"),
        ({"mean": (0.5, 0.5, 0.5)}, "'mean' is of scaling weights, not published"),
        ({"mean": (0.5,), "scaling": "weights"}, "'mean' must be three numbers"),
        (
            {"std": (1.0, 1.0, 0.0), "scaling": "weights"},
            "'std' must be numbers from 0.001",
        ),
        ({"dropout": 1.5}, "from 0 to 0.99"),
        ({"size": 20}, "from 32 to 1024"),
    ],
)
def test_an_impossible_setting_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(NetworkError, match=said):
        settings_from(_SliceSettings, settings)


def test_settings_are_read_from_a_list_and_from_a_word_or_a_number() -> None:
    given = {"scaling": "weights", "mean": [0, 0.5, 0.5], "tuned_blocks": "all"}
    assert settings_from(_SliceSettings, given) == _SliceSettings(
        scaling="weights", mean=(0, 0.5, 0.5), tuned_blocks="all"
    )
    for name, value, said in [
        ("tuned_blocks", 1.5, "from 0 to 3 or 'all', not 1.5"),
        ("mean", 0.5, "numbers, not 0.5"),
        ("mean", ["a", 0, 0], "numbers, not"),
    ]:
        with pytest.raises(NetworkError, match=said):
            settings_from(_SliceSettings, {"scaling": "weights", name: value})


def test_a_network_of_one_class_is_refused() -> None:
    with pytest.raises(NetworkError, match="two classes"):
        build_slice_network("vgg19", 1)
