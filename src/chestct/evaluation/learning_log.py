"""Read the epochs that a training run wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chestct.evaluation.predictions import PredictionsError


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read `log.jsonl` of a run folder: one object per epoch, the last line possibly cut short.

    Raises:
        PredictionsError: The file is missing, or a line other than the last is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PredictionsError(f"{path.name} could not be read: {error}.") from error
    epochs = []
    for number, line in enumerate(lines, start=1):
        try:
            epoch = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            epoch = None
        if not isinstance(epoch, dict) or "epoch" not in epoch:
            msg = f"Line {number} of {path.name} is not an epoch. Expected an object with 'epoch'."
            raise PredictionsError(msg)
        epochs.append(epoch)
    return epochs
