"""Activation checkpointing of residual blocks: memory for time, results untouched.

What happens inside a block is not kept for the way back but computed again. BatchNorm would count
each batch twice then, so the second time it works on copies of its running statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from chestct.errors import TrainingError
from chestct.networks.blocks import BasicBlock, Bottleneck
from chestct.networks.maseres import SEResBlock

RESIDUAL_BLOCKS: Final = (BasicBlock, Bottleneck, SEResBlock)


@contextmanager
def recomputing(network: nn.Module, *, is_wanted: bool = True) -> Iterator[None]:
    """While entered, a network's residual blocks keep their input only, and are computed again.

    Raises:
        TrainingError: It has no residual blocks.
    """
    blocks = [each for each in network.modules() if isinstance(each, RESIDUAL_BLOCKS)]
    if is_wanted and not blocks:
        msg = "training.checkpoint_activations is for residual networks; this one has no blocks."
        raise TrainingError(f"{msg} Set it to false.")
    wrapped = blocks if is_wanted else []
    for block in wrapped:
        block.forward = partial(_recomputed, block, block.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in wrapped:
            # The class's own method is seen again.
            del block.forward


def _recomputed(
    block: nn.Module, forward: Callable[..., torch.Tensor], *inputs: object
) -> torch.Tensor:
    """A block's output, its inside forgotten where the way back will ask for it."""
    if not torch.is_grad_enabled():
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For the pass forward, and for the one that repeats it: statistics must not move twice."""
        return nullcontext(), _statistics_put_aside(block)

    output: torch.Tensor = checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
    return output


@contextmanager
def _statistics_put_aside(block: nn.Module) -> Iterator[None]:
    """While entered, the block's BatchNorms change copies of their running statistics."""
    with ExitStack() as stack:
        for module in block.modules():
            if isinstance(module, _BatchNorm):
                kept = module._buffers
                module._buffers = {name: _copy(value) for name, value in kept.items()}
                stack.callback(setattr, module, "_buffers", kept)
        yield


def _copy(value: Any) -> Any:
    return None if value is None else value.clone()
