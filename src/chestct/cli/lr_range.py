"""`chestct lr-range`: which learning rate to train with."""

from __future__ import annotations

from chestct.cli import training_options as options


def lr_range(
    config: options.Config,
    manifest: options.ManifestFile,
    out: options.RangeFolder,
    overrides: options.Overrides = None,
    steps: options.RangeSteps = None,
    epochs: options.RangeEpochs = None,
    processes: options.Processes = None,
    device: options.Device = "auto",
) -> None:
    """Train while the learning rate rises, draw the loss, suggest a rate."""
    from chestct.cli.training_lines import EpochLines, listening, show_range_test
    from chestct.training.distributed import choose_device
    from chestct.training.lr_range import QUICK_STEPS, RangePlan, run_range_test, write_range_test
    from chestct.training.settings import read_settings

    options.require_one_form(steps, epochs)
    settings = read_settings(config, overrides or ())
    lines = EpochLines(epochs or 1)
    with listening(processes) as listener:
        chosen = choose_device(device)
        plan = RangePlan(settings, manifest, out, steps or QUICK_STEPS, epochs, chosen)
        found = run_range_test(plan, listener, lambda entry: lines.show("range", entry))
    show_range_test(found, write_range_test(found, out))
