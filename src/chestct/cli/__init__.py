"""The command line: parse, call, print. Each command is one file of this package.

Only what `--help` needs is imported here; every command imports its work when it runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from chestct import __version__
from chestct.cli import (
    audit_model,
    classify,
    dataset,
    evaluate,
    info,
    serve,
    simulate,
    slices,
    study,
    train,
)
from chestct.cli.terminal import show_error, show_line, speak_any_encoding
from chestct.errors import ChestCTError, kind_of
from chestct.library_warnings import rephrased_libraries

_EXIT_DONE = 0
_EXIT_WRONG = 2
_EXIT_INTERRUPTED = 130
_EXIT_TERMINATED = 143
_OTHERS = 0o077
"""The permissions of everybody but the owner, as umask(2) takes them away."""


class _Terminated(BaseException):
    """SIGTERM came; no error, so that nothing on the way takes it for one."""


app = typer.Typer(
    name="chestct",
    help="Classify whole chest CT scans. Not a medical device: for research only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(simulate.demo)
app.command()(classify.classify)
app.command()(classify.prepare)
app.command()(simulate.simulate)
app.command()(serve.serve)
app.add_typer(dataset.app, name="dataset")
app.command()(train.train)
app.command()(evaluate.evaluate)
app.command("lr-range")(train.lr_range)
app.add_typer(study.app, name="study")
app.add_typer(slices.app, name="slices")
app.command("audit-model")(audit_model.audit_model)
app.command()(train.export)
app.command("check-plugin")(info.check_plugin)
app.command()(info.info)


def _show_version(asked: bool) -> bool:
    if asked:
        show_line(f"chestct {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the program an error arose.")
    ] = False,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared",
            help="Let others read what is written; else new files and folders are yours alone.",
        ),
    ] = False,
) -> None:
    """Classify whole chest CT scans. Not a medical device: for research only.

    --debug and --shared may stand anywhere, after the command too.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on what stands after the program's name; None takes it from the system.

    Returns:
        0 when all was done, 1 when some scans failed, 2 for wrong use or when nothing could be
        done, 130 after Ctrl-C, 143 after SIGTERM.
    """
    speak_any_encoding()
    given = list(sys.argv[1:] if arguments is None else arguments)
    is_debugging, is_shared = "--debug" in given, "--shared" in given
    # Taken out so that they may stand anywhere, after the command too.
    given = [argument for argument in given if argument not in ("--debug", "--shared")]
    try:
        with (
            rephrased_libraries(show_error, is_debugging=is_debugging),
            _terminated_in_words(),
            _new_files(are_shared=is_shared),
        ):
            return _run(given)
    except (KeyboardInterrupt, typer.Abort):
        show_error("interrupted by Ctrl-C; nothing half-written was left.")
        return _EXIT_INTERRUPTED
    except _Terminated:
        show_error("ended by SIGTERM; nothing half-written was left.")
        return _EXIT_TERMINATED
    except Exception as error:
        show_error(_message_of(error))
        if is_debugging:
            traceback.print_exc()
        return error.exit_code if isinstance(error, ChestCTError) else _EXIT_WRONG


@contextmanager
def _new_files(*, are_shared: bool) -> Iterator[None]:
    """While entered, new files and folders are for their owner alone unless they are shared.

    Processes that are started inside inherit it. What is there already keeps its permissions.
    """
    before = os.umask(_OTHERS)
    os.umask(before if are_shared else before | _OTHERS)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _terminated_in_words() -> Iterator[None]:
    """While entered, SIGTERM unwinds the program, which tidies up, instead of cutting it off."""

    def _end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise _Terminated

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(given: list[str]) -> int:
    """Run one command; without any, show the help and count it as wrong use."""
    ending = app(args=given or ["--help"], prog_name="chestct", standalone_mode=False)
    return (ending or _EXIT_DONE) if given else _EXIT_WRONG


def _message_of(error: Exception) -> str:
    if isinstance(error, ChestCTError):
        return str(error)
    # Wrong use: an exception of typer or of click, by the version of typer; both know their words.
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "chestct"
        return f"{error.format_message()} See: {command} --help"
    return f"internal error ({kind_of(error)}). Run with --debug for details."
