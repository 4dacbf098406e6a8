"""Maps from activations and gradients of one layer: Grad-CAM, Grad-CAM++, LayerCAM.

The gradient is taken with respect to that layer's activation only, and the weights ask for none,
so the backward pass goes from the logit to the layer and no further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chestct.errors import ExplanationError
from chestct.explain.layers import Layer, pick_layer
from chestct.explain.question import CellMap, Question, at_rest, class_score

Cells: TypeAlias = Float[Tensor, "channel cells_d cells_h cells_w"]
Weights: TypeAlias = Float[Tensor, "channel #cells_d #cells_h #cells_w"]  # noqa: F821
Weigh: TypeAlias = Callable[[Cells, Cells], Weights]
"""Activation and gradient to the weight of every activation, or of every channel."""


def gradcam_map(question: Question) -> CellMap:
    """ReLU of the channels' sum, each weighted by its mean gradient (Selvaraju et al. 2017)."""
    return _weighted_map(question, _mean_gradient)


def gradcam_plus_plus_map(question: Question) -> CellMap:
    """As Grad-CAM, each gradient weighted by its share (Chattopadhay et al. 2018, Eq. 19)."""
    return _weighted_map(question, _shared_gradient)


def layercam_map(question: Question) -> CellMap:
    """ReLU of the sum of activations times their own positive gradient (Jiang et al. 2021)."""
    return _weighted_map(question, _own_gradient)


def _mean_gradient(activation: Cells, gradient: Cells) -> Weights:
    return gradient.mean(dim=(1, 2, 3), keepdim=True)


def _shared_gradient(activation: Cells, gradient: Cells) -> Weights:
    squared = gradient**2
    total = activation.sum(dim=(1, 2, 3), keepdim=True)
    divisor = 2 * squared + total * gradient**3
    share = torch.where(divisor != 0, squared / torch.where(divisor != 0, divisor, 1.0), 0.0)
    return (share * gradient.clamp(min=0)).sum(dim=(1, 2, 3), keepdim=True)


def _own_gradient(activation: Cells, gradient: Cells) -> Weights:
    return gradient.clamp(min=0)


def _weighted_map(question: Question, weigh: Weigh) -> CellMap:
    layer = pick_layer(question)
    activation, gradient, target = activation_and_gradient(question, layer)
    values = (weigh(activation, gradient) * activation).sum(dim=0).clamp(min=0)
    return CellMap(values.numpy(), layer.start, layer.step, target, layer.name)


def activation_and_gradient(question: Question, layer: Layer) -> tuple[Cells, Cells, int]:
    """A layer's activation, the gradient of the class's score there, and the class.

    Raises:
        ExplanationError: Activation or gradient hold values that are not finite.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        """Go on from a leaf, so that gradients reach it whatever lies before."""
        leaf = output.detach().requires_grad_(True)
        kept.append(leaf)
        # Layers behind it may work in place, which autograd does not allow on a leaf.
        return leaf.clone()

    with at_rest(question.network) as network, torch.inference_mode(False), torch.enable_grad():
        hook = network.get_submodule(layer.name).register_forward_hook(keep)
        try:
            logits = network(question.batch, question.lungs)
        finally:
            hook.remove()
        target = question.target_of(logits)
        (gradient,) = torch.autograd.grad(class_score(logits, target).sum(), kept)
    activation = kept[0].detach()
    if not (activation.isfinite().all() and gradient.isfinite().all()):
        raise ExplanationError(f"Layer '{layer.name}' gives values that are not finite (nan, inf).")
    return activation[0], gradient[0], target
