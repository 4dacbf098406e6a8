"""The loss of each step, read one step late, so that a GPU has work while its result is awaited."""

from __future__ import annotations

import math

import torch

from chestct.training.objective import DivergedError
from chestct.training.ranks import current_ranks, raise_agreed, total
from chestct.training.run import Run


class StepFigures:
    """Adds the losses of a run's steps up, over all processes, in `run.progress.loss_sum`.

    Attributes:
        is_stop_wanted: Whether any process was asked to stop, as all of them know it.
    """

    def __init__(self, run: Run) -> None:
        self.is_stop_wanted = False
        self._run = run
        self._pending: torch.Tensor | None = None
        self._step = 0

    def add(self, loss: torch.Tensor, *, share: float, wants_stop: bool) -> None:
        """Take a step's loss, and read that of the step before.

        Args:
            loss: Mean over this process's part of the step's examples.
            share: That part, of all.
            wants_stop: Whether this process was asked to stop.

        Raises:
            DivergedError: The loss of the step before is no number.
        """
        if current_ranks().is_alone:
            self.is_stop_wanted |= wants_stop
        stop = torch.full_like(loss, float(wants_stop), requires_grad=False)
        figures = total(torch.stack([loss.detach() * share, stop]))
        self.settle()
        self._pending, self._step = figures, self._run.progress.step_in_epoch

    def settle(self) -> None:
        """Read what is left to be read; a checkpoint may only be written after this.

        Raises:
            DivergedError: It is no number.
        """
        if self._pending is None:
            return
        loss, stop = self._pending.tolist()
        self._pending = None
        self.is_stop_wanted |= stop > 0
        if not math.isfinite(loss):
            raise_agreed(DivergedError(self._not_finite()))
        self._run.progress.loss_sum += loss

    def _not_finite(self) -> str:
        """Say where training broke and what can be done."""
        run = self._run
        return (
            f"The loss is no longer a number in epoch {run.progress.epoch}, step {self._step}. "
            f"The last checkpoint in {run.folder.name} is from before: start a new run with a "
            "lower training.learning_rate, or with training.precision float32."
        )
