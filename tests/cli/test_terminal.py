"""Whatever stands in names, headers and labels: the terminal shows it and does nothing else."""

from __future__ import annotations

import ast
import io
import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from analyses import make_result

import chestct.cli
from chestct.cli import main
from chestct.cli.terminal import (
    scan_progress,
    show_document,
    show_error,
    show_info,
    show_line,
    show_result,
    show_table,
    show_written,
    speak_any_encoding,
    stdout_console,
)
from chestct.errors import printable, printable_message
from chestct.library_warnings import rephrased_libraries
from chestct.pipeline import scan_name

Output = pytest.CaptureFixture[str]
FOREIGN = "\x1b[2J\x1b]0;title\x07p07\nchestct: all is well\r\u202egnp\u2066\x9b31m"
"""Clears the screen, sets a title, rings, forges a line, goes back in it and turns it round."""
HARMFUL = "\x1b\x07\r\u202e\u2066\x9b"


def test_what_moves_a_cursor_or_forges_a_line_is_replaced_and_all_else_kept() -> None:
    assert printable("Müller 王小明 \u05d0 ±") == "Müller 王小明 \u05d0 ±"
    assert not set(printable(FOREIGN)) & set(HARMFUL + "\n")
    assert printable_message("a\nb\n  c") == "a\n  b\n  c"


def test_a_scan_has_a_name_on_one_line(tmp_path: Path) -> None:
    assert scan_name(tmp_path / FOREIGN) == printable(FOREIGN)


def test_everything_that_is_shown_goes_through_one_place(capsys: Output) -> None:
    result = make_result()
    foreign = replace(
        result,
        scan=FOREIGN,
        decision=FOREIGN,
        probabilities={FOREIGN: 0.9, "normal": 0.1},
        warnings=(FOREIGN,),
    )
    console = stdout_console()
    show_error(FOREIGN)
    show_line(FOREIGN)
    show_document(FOREIGN.replace("\n", ""))
    show_info({"classes": {FOREIGN: FOREIGN}})
    show_written([Path(FOREIGN)], [FOREIGN])
    show_result(console, foreign, Path(FOREIGN))
    show_table(console, [foreign, foreign], [FOREIGN, FOREIGN])
    with scan_progress(is_quiet=False) as progress:
        progress.console.print(FOREIGN.replace("\n", ""), markup=False)
    said = capsys.readouterr()
    assert not set(said.out + said.err) & set(HARMFUL)
    lines = (said.out + said.err).splitlines()
    assert [line for line in lines if line.startswith("chestct: all is well")] == []
    assert said.err.splitlines()[0].startswith("chestct: ")


def test_the_column_of_warnings_counts_warnings_and_no_reasons(capsys: Output) -> None:
    result = replace(make_result(), warnings=("first", "second"))
    refused = replace(result, unsuitable_reasons=("one", "two", "three"), warnings=("first",))
    show_table(stdout_console(), [result, refused, replace(refused, warnings=())])
    heading, *lines = capsys.readouterr().out.splitlines()
    end = heading.index("Warnings") + len("Warnings")
    assert [line[:end].split()[-1] for line in lines] == ["2", "1", "0"]


def test_no_command_prints_past_that_place() -> None:
    folder = Path(chestct.cli.__file__).parent
    for path in sorted(folder.glob("*.py")):
        if path.name == "terminal.py":
            continue
        calls = [
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        ]
        assert not {"typer.echo", "print", "Console", "click.echo"} & set(calls), path.name


def test_a_newline_in_a_path_forges_no_line(tmp_path: Path, capsys: Output) -> None:
    scan = tmp_path / "p07\nchestct: all is well\x1b[31m"
    assert main(["classify", str(scan), "--engine", "torch"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("chestct:")] == lines[:1]
    assert "\x1b" not in "".join(lines)


def test_a_librarys_warning_is_rephrased_without_its_words(capsys: Output) -> None:
    code = compile(
        "import warnings; warnings.warn('Secret^Name')", "site-packages/lib/a.py", "exec"
    )
    with rephrased_libraries(show_error, is_debugging=False):
        warnings.simplefilter("always")
        exec(code, {})
        logging.getLogger("pydicom").warning("Secret^Name")
        logging.getLogger("pydicom").info("nothing of interest")
        logging.getLogger("chestct.storage").warning("Nothing is cached: %s", "disk full")
    said = capsys.readouterr().err
    assert "Secret" not in said
    assert "the library lib gave a warning (UserWarning)" in said
    assert "the library pydicom gave a warning (warning)" in said
    assert "chestct: Nothing is cached: disk full" in said
    assert len(said.splitlines()) == 3


def test_its_words_are_shown_for_debugging(capsys: Output) -> None:
    with rephrased_libraries(show_error, is_debugging=True):
        logging.getLogger("pydicom").warning("its words")
        logging.getLogger("chestct.writers").debug("details")
    said = capsys.readouterr().err
    assert "its words" in said
    assert "details" in said


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_a_terminal_of_any_encoding_is_spoken_to(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", screen)
    speak_any_encoding()
    show_result(stdout_console(), make_result())
    show_line('{"scan": "王小明 \U0001f600"}')
    screen.flush()
    shown = screen.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "#" * 5 in shown
    document = json.loads(shown.splitlines()[-1])
    assert document["scan"] == "王小明 \U0001f600"
