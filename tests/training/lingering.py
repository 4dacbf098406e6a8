"""The run of `brightness.py`, which stays a while in each part of a step and says in which it is.

So that a kill from outside can be aimed. `python lingering.py` imports once what a run needs; for
every line on its standard input, a run's folder and the file to say in where it is, it starts a
process with that run, and prints the process's number and, once it has ended, how it ended.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # What the first optimiser of a process loads, in a second.
from brightness import SETS, SETTINGS, MeanThenLinear
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from chestct.datasets.augment import _Augmentation
from chestct.training import run
from chestct.training.loop import train

PARTS = ("forward", "backward", "stepped", "saving")
"""In the order of a step; "saving" is a checkpoint written aside and not yet in its place."""
STAY_S = 0.03


class Lingering(MeanThenLinear):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self.say = say

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor | None = None) -> torch.Tensor:
        logits = super().forward(batch, lungs)
        if self.training:
            self.say("forward")
            logits.register_hook(lambda _gradient: self.say("backward"))
        return logits


def linger(folder: Path, where: Path) -> None:
    """The run."""

    def say(part: str) -> None:
        where.write_text(part)
        time.sleep(STAY_S)

    def save_and_stay(
        tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]
    ) -> None:
        save_file(tensors, path, metadata)
        say("saving")

    run.save_file = save_and_stay
    register_optimizer_step_post_hook(lambda *_: say("stepped"))
    train(Lingering(say), SETS, SETTINGS, folder, augmentation=_Augmentation())


def start(folder: Path, where: Path) -> int:
    """Start the run in a process of its own."""
    number = os.fork()
    if number:
        return number
    # A session of its own, so that its data-loading worker dies with it.
    os.setsid()
    try:
        linger(folder, where)
    finally:
        os._exit(1)


def say_on(words: object) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        number = start(*map(Path, json.loads(line)))
        say_on(number)
        _, status = os.waitpid(number, 0)
        say_on(os.waitstatus_to_exitcode(status))
