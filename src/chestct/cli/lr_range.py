"""`chestct lr-range`: which learning rate to train with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from chestct.cli import training_options as options
from chestct.cli.options import grouped

if TYPE_CHECKING:
    from chestct.training.plan import Plan, SlicePlan


@grouped
def lr_range(
    training: options.Training,
    manifest: options.ManifestFile,
    out: options.RangeFolder,
    test: options.RangeTest,
) -> None:
    """Train while the learning rate rises, draw the loss, suggest a rate."""
    from chestct.training.distributed import choose_device
    from chestct.training.plan import Plan
    from chestct.training.settings import RunSettings

    test.require_one_form()
    settings = training.read_settings(RunSettings)
    plan = Plan(settings, manifest, out, device=choose_device(training.device))
    suggest_rate(plan, test, training.processes)


def suggest_rate(plan: Plan | SlicePlan, test: options.RangeTest, processes: int | None) -> None:
    """Run a range test on scans or slices, show and write what it found."""
    from chestct.cli.training_lines import EpochLines, listening, show_range_test
    from chestct.training.search import QUICK_STEPS, run_range_test, write_range_test

    lines = EpochLines(test.epochs or 1)
    with listening(processes, lines) as listener:
        plan = replace(plan, listener=listener)
        found = run_range_test(plan, steps=test.steps or QUICK_STEPS, epochs=test.epochs)
    show_range_test(found, write_range_test(found, plan.folder))
