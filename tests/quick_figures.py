"""Evaluations and audits in tests of other things."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chestct.evaluation.figures import save_figure
from chestct.studies.model_audit import CHANGES


@contextmanager
def one_of_each() -> Iterator[None]:
    """One kind of figure file, and one change in an audit: the others are tested elsewhere."""

    def save_svg(figure: Any, path: Path) -> Path:
        return save_figure(figure, path) if path.suffix == ".svg" else path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chestct.evaluation.report.save_figure", save_svg)
        patch.setattr("chestct.studies.model_audit.CHANGES", {"thick": CHANGES["thick"]})
        yield
