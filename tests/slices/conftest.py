"""Tests of the slice networks.

With timm, which has an environment of its own in `.ci/run`, they run on MobileNetV2; without it,
those that need none of its networks run on a small stand-in.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from drawn_slices import draw_folder
from safetensors.torch import save_file
from tiny_timm import TINY_TIMM

from chestct.datasets.manifest import write_manifest
from chestct.datasets.public import scan_slice_folder
from chestct.evaluation.intervals import Bootstrap
from chestct.evaluation.report import EvaluationSettings
from chestct.extras import is_installed
from chestct.networks import slices
from chestct.networks.slices import build_slice_network
from chestct.training import judging


@pytest.fixture(autouse=True, scope="module")
def _stand_in() -> Iterator[None]:
    """Where timm is not installed, a network of its interface in its place."""
    with pytest.MonkeyPatch.context() as patch:
        if not is_installed("timm"):
            patch.setattr(slices, "import_extra", lambda package, extra: TINY_TIMM)
        yield


@pytest.fixture(autouse=True, scope="module")
def _few_replicates() -> Iterator[None]:
    """Evaluations with fewer draws and no figures: what they say is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        quick = partial(EvaluationSettings, bootstrap=Bootstrap(20), formats=())
        patch.setattr(judging, "EvaluationSettings", quick)
        yield


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 30 drawn slices of 10 patients."""
    folder = draw_folder(tmp_path_factory.mktemp("drawn"))
    return write_manifest(scan_slice_folder(folder).manifest, folder / "slices.csv")


@pytest.fixture(scope="module")
def weights(_stand_in: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as ImageNet's for MobileNetV2 would be, its numbers random, its classifier too."""
    del _stand_in
    torch.manual_seed(11)
    backbone = build_slice_network("mobilenet_v2", 2, {"size": 64}).backbone
    tensors = {**backbone.state_dict(), "classifier.weight": torch.randn(1000, 1280)}
    tensors["classifier.bias"] = torch.zeros(1000)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.safetensors"
    save_file(tensors, path)
    return path
