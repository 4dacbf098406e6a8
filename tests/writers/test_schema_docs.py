"""The documentation's lists of fields are the lists of the outputs themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from analyses import make_analysis
from pydantic import BaseModel

from chestct.analysis import SCAN_FACTS
from chestct.writers.json_report import ResultDocument
from chestct.writers.preview import _prepared_record

PAGE = Path(__file__).resolve().parents[2] / "docs" / "result_schema.md"


def documented(heading: str) -> list[str]:
    """First column of the table under a heading, back-ticked names only."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)


def field_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Names of a model's fields, those of models inside it after their own, with dots."""
    names = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names += field_names(kind, f"{prefix}{name}.")
    return names


def test_every_field_of_the_result_is_documented_in_order() -> None:
    assert documented("result.json, schema 2.3") == field_names(ResultDocument)


def test_every_fact_is_documented_in_order() -> None:
    assert documented("scan_facts") == list(SCAN_FACTS)


def test_every_field_of_a_prepared_scan_is_documented_in_order() -> None:
    record = _prepared_record(make_analysis().prepared, "p07")
    assert documented("prepared.json, schema 1.0") == list(record)


def test_every_field_of_the_schema_has_a_description() -> None:
    schema = ResultDocument.model_json_schema()
    objects = [schema, *schema["$defs"].values()]
    undescribed = [
        name
        for each in objects
        for name, field in each["properties"].items()
        if "description" not in field
    ]
    assert undescribed == []
