"""What a heat-map of one finding is asked for, beside one of two classes."""

from __future__ import annotations

import torch
from torch import nn

from chestct.explain.question import Question

LOGITS = torch.tensor([[1.5, -4.0]])


def question(*, are_findings: bool) -> Question:
    nothing = torch.zeros(1, 1, 2, 2, 2)
    return Question(nn.Identity(), nothing, nothing, are_findings=are_findings)


def test_a_finding_is_explained_by_its_own_logit_whatever_the_other_one_is() -> None:
    assert question(are_findings=True).score(LOGITS, 1).tolist() == [-4.0]


def test_one_of_two_classes_is_explained_against_the_other() -> None:
    assert question(are_findings=False).score(LOGITS, 1).tolist() == [-5.5]
