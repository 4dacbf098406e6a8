"""`chestct lr-range`: which learning rate to train with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from chestct.cli import training_options as options

if TYPE_CHECKING:
    from chestct.training.plan import Plan, SlicePlan


def lr_range(
    config: options.Config,
    manifest: options.ManifestFile,
    out: options.RangeFolder,
    overrides: options.Overrides = None,
    labels: options.Labels = None,
    steps: options.RangeSteps = None,
    epochs: options.RangeEpochs = None,
    processes: options.Processes = None,
    device: options.Device = "auto",
) -> None:
    """Train while the learning rate rises, draw the loss, suggest a rate."""
    from chestct.training.distributed import choose_device
    from chestct.training.plan import Plan
    from chestct.training.settings import read_settings

    options.require_one_form(steps, epochs)
    settings = options.with_labels(read_settings(config, overrides or ()), labels)
    plan = Plan(settings, manifest, out, device=choose_device(device))
    suggest_rate(plan, steps, epochs, processes)


def suggest_rate(
    plan: Plan | SlicePlan, steps: int | None, epochs: int | None, processes: int | None
) -> None:
    """Run a range test on scans or slices, show and write what it found."""
    from chestct.cli.training_lines import EpochLines, listening, show_range_test
    from chestct.training.search import QUICK_STEPS, run_range_test, write_range_test

    lines = EpochLines(epochs or 1)
    with listening(processes, lines) as listener:
        plan = replace(plan, listener=listener)
        found = run_range_test(plan, steps=steps or QUICK_STEPS, epochs=epochs)
    show_range_test(found, write_range_test(found, plan.folder))
