from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from chestct.cli import app

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def code_lines(text: str) -> list[str]:
    """Lines of the shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_two_commands_stand_there_word_for_word() -> None:
    lines = code_lines(README)
    assert lines[0] == "pip install -c constraints.txt . && chestct demo"
    assert lines[1] == "pip install -c constraints.txt '.[test]' && pytest"


def test_the_readme_is_at_most_120_lines() -> None:
    assert len(README.splitlines()) <= 120


def test_the_readme_shows_a_picture_and_says_it_is_no_medical_device() -> None:
    assert re.search(r"!\[[^\]]+\]\(docs/pictures/[^)]+\)", README)
    assert "Not a medical device" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    local = [target.split("#")[0] for target in targets if "://" not in target]
    missing = [target for target in local if target and not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_that_are_shown_exist(page: Path) -> None:
    known = known_options()
    shown = [
        line.split("&& ")[-1]
        for line in code_lines(page.read_text(encoding="utf-8"))
        if "chestct " in line and "pip install -c constraints.txt ." not in line.split("&& ")[-1]
    ]
    for line in shown:
        words = line.split()
        if words[0] != "chestct":
            continue
        command = next(word for word in words[1:] if not word.startswith("-"))
        assert command in known, line
        options = {word for word in words if word.startswith("--")}
        assert options <= known[command], line


def known_options() -> dict[str, set[str]]:
    """Command name to its options, those of its own commands among them."""

    def options(command: object) -> set[str]:
        own = {option for parameter in command.params for option in parameter.opts}
        return own.union(*(options(each) for each in getattr(command, "commands", {}).values()))

    group = typer.main.get_command(app)
    return {name: options(command) for name, command in group.commands.items()}


def test_every_module_of_the_reference_is_there() -> None:
    page = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")
    modules = re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE)
    assert len(modules) > 20
    places = [REPOSITORY / "src" / name.replace(".", "/") for name in modules]
    missing = [
        place
        for place in places
        if not place.with_suffix(".py").is_file() and not (place / "__init__.py").is_file()
    ]
    assert missing == []
