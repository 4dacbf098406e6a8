"""Does a heat-map depend on what the network has learned? The test of Adebayo et al. (2018).

A map that looks the same when the network's weights are drawn anew shows the scan and not the
network. Parts are drawn anew from the network's end to its start, so that one sees from where on
the map changes, and then the whole network several times, as one draw may be like it by chance.

Kernels and matrices are drawn from a normal distribution of the trained ones' root mean square;
of biases and of what a normalisation keeps, the entries are shuffled, which leaves activations at
a scale that the network can work with. Maps are compared inside the lungs, as gates and
backgrounds make all maps alike outside.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from chestct.arrays import Heat, Mask
from chestct.classifier import Classifier
from chestct.explain.explanation import Explanation
from chestct.explain.run import explain
from chestct.preprocess.prepared import PreparedScan
from chestct.studies.model_audit_record import MapTest, WeightStage

NUM_DRAWS: Final = 5
"""Maps of random networks that a map is compared with."""
MOST_DRAWS: Final = 12
"""Random networks asked for them; about half give an empty map."""
WHOLE: Final = "whole network"
OWN_PARAMETERS: Final = "parameters of its own"
_WINDOW: Final = 7
"""Voxels along each axis that structural similarity looks at together."""
_STABILISERS: Final = (0.01**2, 0.03**2)


@dataclass(frozen=True, eq=False)
class WithNetwork(Classifier):
    """A classifier whose network is another one than that in its folder."""

    given: nn.Module

    def load_network(self) -> nn.Module:
        """The network that was given, as it is."""
        return self.given


def with_network(classifier: Classifier, network: nn.Module) -> WithNetwork:
    """The classifier with another network in the place of its own."""
    own = {field.name: getattr(classifier, field.name) for field in fields(Classifier)}
    return WithNetwork(**own, given=network)


def compare_weights(
    classifier: Classifier, prepared: PreparedScan, found: Explanation, rng: np.random.Generator
) -> MapTest:
    """Compare a classifier's map with maps made with other weights.

    Args:
        classifier: Whose map it is; its network is not changed.
        prepared: The scan.
        found: The map, of the network's last block.
        rng: What the new weights come from.
    """
    if not found.has_evidence:
        return MapTest(found.method, found.label, has_evidence=False)
    cascade = tuple(_cascade(classifier, prepared, found, _generator(rng)))
    whole: list[WeightStage] = []
    for _ in range(MOST_DRAWS):
        network = copy.deepcopy(classifier.network)
        generator = _generator(rng)
        for part in parts_of(network).values():
            redraw(part, generator)
        whole.append(_compared(WHOLE, with_network(classifier, network), prepared, found))
        if sum(stage.spearman is not None for stage in whole) == NUM_DRAWS:
            break
    return MapTest(found.method, found.label, True, cascade, tuple(whole))


def parts_of(network: nn.Module) -> dict[str, list[Tensor]]:
    """What each part of a network has learned, by name, in the order in which they were made."""
    parts = {name: [*part.parameters(), *part.buffers()] for name, part in network.named_children()}
    own = [*network.parameters(recurse=False), *network.buffers(recurse=False)]
    return {name: learned for name, learned in {OWN_PARAMETERS: own, **parts}.items() if learned}


def redraw(learned: list[Tensor], generator: torch.Generator) -> None:
    """Draw tensors anew, in place; counts, which are whole numbers, stay."""
    with torch.no_grad():
        for tensor in (each for each in learned if each.is_floating_point()):
            if tensor.ndim > 1:
                scale = tensor.square().mean().sqrt()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
            elif tensor.numel() > 1:
                tensor.copy_(tensor[torch.randperm(tensor.numel(), generator=generator)])


def spearman(first: Heat, second: Heat, where: Mask) -> float:
    """Rank correlation of two maps inside a mask; 0 where one of them is the same everywhere."""
    from scipy.stats import rankdata

    ranks = [rankdata(heat[where]) for heat in (first, second)]
    if min(np.ptp(each) for each in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def structural_similarity(first: Heat, second: Heat, where: Mask) -> float:
    """Mean structural similarity (Wang et al. 2004) of two maps from 0 to 1, inside a mask."""
    from scipy.ndimage import uniform_filter

    def smoothed(values: Heat) -> Heat:
        """Mean over a window round each voxel."""
        return np.asarray(uniform_filter(values, _WINDOW), dtype=np.float32)

    one, other = smoothed(first), smoothed(second)
    spread_one, spread_other = smoothed(first**2) - one**2, smoothed(second**2) - other**2
    together = smoothed(first * second) - one * other
    low, high = _STABILISERS
    likeness = (2 * one * other + low) * (2 * together + high)
    likeness /= (one**2 + other**2 + low) * (spread_one + spread_other + high)
    return float(likeness[where].mean(dtype=np.float64))


def _cascade(
    classifier: Classifier, prepared: PreparedScan, found: Explanation, generator: torch.Generator
) -> Iterator[WeightStage]:
    network = copy.deepcopy(classifier.network)
    changed = with_network(classifier, network)
    for name, part in reversed(parts_of(network).items()):
        redraw(part, generator)
        yield _compared(name, changed, prepared, found)


def _compared(
    name: str, changed: Classifier, prepared: PreparedScan, found: Explanation
) -> WeightStage:
    other = explain(changed, prepared, method=found.method, label=found.label)
    if not other.has_evidence:
        return WeightStage(name, None, None)
    return WeightStage(
        name,
        spearman(found.heat, other.heat, prepared.lungs),
        structural_similarity(found.heat, other.heat, prepared.lungs),
    )


def _generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**62)))
