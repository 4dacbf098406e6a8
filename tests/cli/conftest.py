from __future__ import annotations

import pytest
from here import work_here


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands have workers do is done in this process."""
    work_here(monkeypatch)
