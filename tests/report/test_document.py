"""A report written in Markdown is read into its parts, and its parts are written as before."""

from __future__ import annotations

from chestct.report import Picture, Points, Table, _one_line, _read_report, as_markdown

WRITTEN = """
# A report

Words over
two lines.

- One point
  of two lines.
- Another.

## A part, with 2 sides

*What it shows*
| side | words |
| left | a \\| b |
| **right** | **c** |

![Words instead,
of two lines.](figures/both_sides.png)
*Words under it.*
"""


def no_figure() -> None:
    """Reading draws nothing."""
    raise AssertionError


def test_every_kind_of_part_is_read() -> None:
    draw = {"both_sides": no_figure}
    head, part = _read_report(WRITTEN, draw).sections
    assert (head.title, head.level) == ("A report", 1)
    assert head.blocks == (
        "Words over two lines.",
        Points(("One point of two lines.", "Another.")),
    )
    assert (part.title, part.level, part.anchor) == (
        "A part, with 2 sides",
        2,
        "a-part-with-2-sides",
    )
    table = Table(
        ("side", "words"), (("left", "a | b"), ("right", "c")), "What it shows", frozenset({1})
    )
    picture = Picture("both_sides", "Words under it.", "Words instead, of two lines.", no_figure)
    assert part.blocks == (table, picture)


def test_what_was_read_is_written_as_markdown() -> None:
    report = _read_report(WRITTEN, {"both_sides": no_figure})
    text = as_markdown(*report.sections)
    assert "*What it shows*\n\n| side | words |\n| --- | --- |\n| left | a \\| b |\n" in text
    assert "| **right** | **c** |" in text
    assert "![Words instead, of two lines.](figures/both_sides.png)\n\n*Words under it.*" in text
    assert text.startswith("# A report\n\nWords over two lines.\n\n- One point of two lines.\n")


def test_what_others_wrote_makes_no_part_of_its_own() -> None:
    foreign = _one_line("First.\n\n# Second\n\n![x](figures/none.png) *y*")
    report = _read_report(f"# Title\n\n{foreign}\n\n![x](figures/none.png) *y*", {})
    (section,) = report.sections
    assert section.blocks == (foreign, "![x](figures/none.png) *y*")
