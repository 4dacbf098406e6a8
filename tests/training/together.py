"""What `test_together.py` has two processes do: `torchrun --nproc-per-node 2 together.py FOLDER`.

Each process writes what it saw to `seen-RANK.json`; run alone it is the reference.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import torch
from brightness import Brightness, MeanThenLinear
from safetensors.torch import save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from chestct.cli import main as chestct
from chestct.errors import ChestCTError
from chestct.evaluation import report
from chestct.training.distributed import (
    CPU,
    from_main,
    joined,
    launched_ranks,
    main_first,
    on_main,
    others_explained,
    total,
)
from chestct.training.loop import evaluate, train
from chestct.training.run import LabelledSets
from chestct.training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    epochs=2,
    batch_size=4,
    optimizer="sgd",
    learning_rate=0.1,
    schedule="constant",
    class_weights="balanced",
    label_smoothing=0.1,
)
# Nine examples in steps of four: the last step has one, which one of two processes gets.
SETS = LabelledSets(Brightness(9), Brightness(5), num_classes=2)
CASES = {"plain": {}, "accumulated": {"accumulation": 2}}


class Plain(nn.Module):
    """No BatchNorm and no dropout, whose outcome depends on the share of a batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(1, 3, 3)
        self.linear = nn.Linear(3, 2)

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.conv(batch)).mean(dim=(2, 3, 4)))


class IsTold(MeanThenLinear):
    """Asks to be stopped, in one process only, in its fourth training pass."""

    passes = 0

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        if self.passes == 4 and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(batch, lungs)


def train_and_keep_gradients(folder: Path, name: str) -> list[dict[str, object]]:
    """Train; the gradients of every optimiser step go to a file of this process."""
    gradients: dict[str, torch.Tensor] = {}
    network = Plain()

    def keep(optimizer: torch.optim.Optimizer, *_arguments: object) -> None:
        step = len(gradients) // 4
        for key, value in network.named_parameters():
            gradients[f"{step}.{key}"] = value.grad.clone()

    hook = register_optimizer_step_pre_hook(keep)
    settings = SETTINGS.model_copy(update=CASES[name])
    history = train(network, SETS, settings, folder / name)
    hook.remove()
    save_file(gradients, folder / f"{name}-{os.environ.get('RANK', 'alone')}.safetensors")
    return [asdict(entry) for entry in history]


def stop_and_go_on(folder: Path) -> list[str]:
    """Stop a run in the middle and go on with it; one that was never stopped stands beside it."""
    settings = SETTINGS.model_copy(update={"checkpoint_every_s": 1000.0})
    said = []
    for network in (IsTold(), MeanThenLinear()):
        try:
            train(network, SETS, settings, folder / "stopped")
        except ChestCTError as error:
            said.append(f"{type(error).__name__}: {error}")
    train(MeanThenLinear(), SETS, settings, folder / "whole")
    return said


def run_command(*arguments: str) -> dict[str, object]:
    """Status and output of `chestct`, of this process."""
    out, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(wrong):
        status = chestct(arguments)
    return {"status": status, "out": out.getvalue(), "err": wrong.getvalue()}


def fail_on_main() -> str:
    """What each process is told when the first one fails at something."""

    def fail() -> None:
        raise ChestCTError("as it should")

    try:
        main_first(fail)
    except ChestCTError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(folder: Path, commands: dict[str, list[str]]) -> None:
    torch.set_num_threads(1)
    launched = launched_ranks()
    # Nobody looks at the figures.
    undrawn = patch.object(report, "draw_evaluation", lambda *_arguments: {})
    with undrawn, joined(launched, CPU):
        if launched.rank:
            # Only the first process may write: everything is written aside and renamed.
            Path.replace = None  # type: ignore[method-assign, assignment]
        seen: dict[str, object] = {name: train_and_keep_gradients(folder, name) for name in CASES}
        outputs = evaluate(Plain(), SETS.validation, batch_size=2)
        seen["outputs"] = [outputs.logits.tolist(), outputs.labels.tolist()]
        seen["one example"] = evaluate(Plain(), Brightness(1)).logits.tolist()
        seen["said when stopped"] = stop_and_go_on(folder)
        seen["told"] = fail_on_main()
        seen["shared"] = from_main({"näme": [launched.rank, 0.1, None]})
        seen["on main"] = on_main(lambda: "here")
        for name, arguments in commands.items():
            seen[name] = run_command(*arguments)
        who = os.environ.get("RANK", "alone")
        (folder / f"seen-{who}.json").write_text(json.dumps(seen))
        if not launched.is_alone:
            (folder / "lost.txt").write_text(lose_the_other(launched.rank))


def lose_the_other(rank: int) -> str:
    """What the first process is told when the second one is gone without a word."""
    if rank == 1:
        os._exit(0)
    try:
        with others_explained():
            total(torch.zeros(1))
    except ChestCTError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
