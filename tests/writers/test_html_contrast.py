"""Text can be read in both themes and in print: WCAG 2.1, contrast of at least 4.5 to 1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import chestct.writers

STYLE = (Path(chestct.writers.__file__).parent / "report.css").read_text(encoding="utf-8")
THEMES = ("light", "dark", "print")
TEXTS = (
    ("ink", "page"),
    ("ink", "soft"),
    ("muted", "page"),
    ("muted", "soft"),
    ("caution", "page"),
    ("caution", "caution-soft"),
    ("evidence", "soft"),
    ("accent", "page"),
)
GRAPHICS = (("evidence", "soft"), ("evidence", "track"), ("accent", "track"))


def colors_of(theme: str) -> dict[str, str]:
    """The theme's variables; the style sheet lists light, dark and print in this order."""
    blocks = re.findall(r":root \{([^}]*)\}", STYLE)
    assert len(blocks) == len(THEMES)
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[THEMES.index(theme)]))


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_black_on_white_has_the_largest_contrast() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("text", "ground"), TEXTS)
def test_text_stands_out_from_its_ground(theme: str, text: str, ground: str) -> None:
    colors = colors_of(theme)
    assert contrast(colors[text], colors[ground]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("mark", "ground"), GRAPHICS)
def test_lines_and_bars_stand_out_from_their_ground(theme: str, mark: str, ground: str) -> None:
    colors = colors_of(theme)
    assert contrast(colors[mark], colors[ground]) >= 3.0


def test_the_page_has_rules_for_print_and_narrow_screens() -> None:
    assert "@media print" in STYLE
    assert "break-inside: avoid" in STYLE
    assert "max-width: 480px" in STYLE
