"""The page's table of settings is the settings' own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def test_the_page_has_the_settings_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import settings_table

    try:
        page = settings_table.PAGE.read_text(encoding="utf-8")
        assert settings_table.BEGIN in page
        assert settings_table.page_with_table(page) == page, "run scripts/settings_table.py --write"
    finally:
        sys.modules.pop("settings_table", None)
