"""How much attention each position of MASERes gets, where its attention is the paper's.

Column means of softmax(Q K^T) over all queries and the three heads, times the number of positions:
1 is what a position gets when attention makes no difference. It says what the network compares
with, not what speaks for a class; the class changes nothing.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chestct.errors import ExplanationError
from chestct.explain.layers import find_layers
from chestct.explain.question import CellMap, Question, output_of, refuse_layer
from chestct.networks.maseres import Attention, Maseres, attend_over_positions

_QUERIES_AT_ONCE: Final = 512
"""Rows of the position-by-position matrix held at a time: 12 MB per head at 18^3 positions."""


def attention_map(question: Question) -> CellMap:
    """Attention received by each position, 1 standing for an even share.

    Raises:
        ExplanationError: The network has no such attention, or a layer was named.
    """
    refuse_layer(question, "attention")
    attention = _attention_of(question.network)
    layer = find_layers(question).get("pool")
    if layer is None:
        raise ExplanationError("This MASERes has a single position: there is nothing to attend to.")
    pooled, target = output_of(question, layer.name)
    with torch.no_grad():
        positions = pooled[0].flatten(1).T
        received = _received(attention.query(positions), attention.key(positions))
    return CellMap(
        received.reshape(layer.shape).numpy(), layer.start, layer.step, target, "attention"
    )


def _attention_of(network: nn.Module) -> Attention:
    """The network's attention, if there is one that attends to anything."""
    if not isinstance(network, Maseres):
        msg = (
            "Only the network 'maseres' has an attention map: use 'gradcam', which every network "
            "allows."
        )
        raise ExplanationError(msg)
    if network.attention.attend is not attend_over_positions:
        msg = (
            "The attention of this MASERes is the published one, whose weights are 1 everywhere, "
            "so it has no map: use 'gradcam', or a network with the setting attention: paper."
        )
        raise ExplanationError(msg)
    return network.attention


def _received(
    query: Float[Tensor, "position head"], key: Float[Tensor, "position head"]
) -> Float[Tensor, " position"]:
    """Mean over heads of the column means of softmax(Q K^T), times the number of positions."""
    total = torch.zeros(key.shape[0])
    for q, k in zip(query.T, key.T, strict=True):
        for some in q.split(_QUERIES_AT_ONCE):
            total += torch.softmax(torch.outer(some, k), dim=1).sum(dim=0)
    return total / query.shape[1]
