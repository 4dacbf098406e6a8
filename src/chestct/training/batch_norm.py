"""BatchNorm's moving statistics in the first passes of a run.

They begin at mean 0 and variance 1 and take over a share of each batch's, the momentum: 0.01 in
Keras, 0.1 in PyTorch. After n passes (1 - momentum)^n of the start is left, and what is evaluated
normalises with that mixture. Where features vary by much less than 1, a small rest outweighs them.
With a warm-up pass n takes over at least 1 / n: a plain mean of all passes until the momentum is
reached, in which nothing of the start is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from chestct.training.settings import TrainingSettings

NEGLIGIBLE_START: Final = 1e-4
"""Share of the start values in the moving statistics that is not worth a word."""


class BatchNormWarmUp:
    """Sets the momentum of a network's BatchNorms before each pass.

    Args:
        network: Its BatchNorms are found now, after any replacing.
        is_wanted: Where not, nothing is ever changed.
    """

    def __init__(self, network: nn.Module, *, is_wanted: bool) -> None:
        self._momenta = _momenta(network) if is_wanted else []

    def before_pass(self, number: int) -> None:
        """Set the momentum for pass `number` of the run, from 0."""
        for norm, momentum in self._momenta:
            norm.momentum = max(momentum, 1 / (number + 1))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """When left, every momentum is the network's own again."""
        try:
            yield
        finally:
            for norm, momentum in self._momenta:
                norm.momentum = momentum


def remark_on_start(network: nn.Module, settings: TrainingSettings, num_scans: int) -> str | None:
    """What to say of a run too short for its network's momentum; None where it is long enough."""
    passes = settings.epochs * math.ceil(num_scans / settings.batch_size)
    rest = max(((1 - momentum) ** passes for _, momentum in _momenta(network)), default=0.0)
    if settings.batch_norm_warm_up or rest <= NEGLIGIBLE_START:
        return None
    return (
        f"After {passes} passes BatchNorm's moving statistics will still hold {rest:.2g} of what "
        "they began with, and may be wrong by far more: set training.batch_norm_warm_up to true, "
        "or train for longer."
    )


def _momenta(network: nn.Module) -> list[tuple[_BatchNorm, float]]:
    """BatchNorms with moving averages; None in place of a momentum is a plain mean already."""
    return [
        (module, module.momentum)
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.momentum is not None
    ]
