"""The table of a training's settings, made from the settings themselves.

    python scripts/settings_table.py            prints it
    python scripts/settings_table.py --write    puts it into docs/training.md

A setting's default, choices and description are those of its field in
`chestct.training.settings`; the page has the table between two comments.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from chestct.report import as_markdown_table
from chestct.training.settings import RunSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "training.md"
BEGIN = "<!-- settings: made by python scripts/settings_table.py --write -->\n"
END = "<!-- end of settings -->\n"


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of each setting, those of a section after one another."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from rows(kind, f"{prefix}{name}.")
        else:
            yield f"`{prefix}{name}`", default_of(field), meaning_of(field)


def default_of(field: FieldInfo) -> str:
    """A setting's default as one writes it in YAML; "needed" where it has none."""
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def meaning_of(field: FieldInfo) -> str:
    """Its choices, where they are few, and its description."""
    said = str(field.description)
    if get_origin(field.annotation) is Literal:
        return f"{', '.join(f'`{choice}`' for choice in get_args(field.annotation))}: {said}"
    return said


def table() -> str:
    """The whole table in Markdown."""
    return as_markdown_table(("setting", "default", "meaning"), list(rows(RunSettings))) + "\n"


def page_with_table(page: str) -> str:
    """The page with the table of today between its comments."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name} lacks the comments that the table stands between.")
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table(), end="")
