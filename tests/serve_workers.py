"""What stands in for the process that classifies: each takes orders as the real one does."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection

from chestct.serve.jobs import Event


def answer_at_once(pipe: Connection) -> None:
    """Every order is done at once."""
    while True:
        pipe.recv()
        pipe.send(Event("stage", "classifying", (1, 2)))
        pipe.send(Event("done"))


def never_come_to_an_end(pipe: Connection) -> None:
    """Every order lasts for ever, and leaves something half-written."""
    while True:
        order = pipe.recv()
        half = order.results / "half" / ".chestct-part-1"
        half.mkdir(parents=True)
        (half / "result.json").write_text("{")
        pipe.send(Event("answered", "half", document="{}"))
        time.sleep(600)


def fall(pipe: Connection) -> None:
    """The process ends at a scan that is called so, and does all others."""
    while True:
        order = pipe.recv()
        if order.scan.name == "bad":
            os._exit(9)
        pipe.send(Event("done"))


def refuse(pipe: Connection) -> None:
    """Every order fails with a sentence."""
    while True:
        pipe.recv()
        pipe.send(Event("failed", "This is no scan."))


SERIES = {"1.1": "4 slices, 2 mm", "1.2": '4 slices, 2 mm, kernel "B31f"'}


def ask_which(pipe: Connection) -> None:
    """Every order could be one of two series, until it says which."""
    while True:
        order = pipe.recv()
        if order.series is None:
            pipe.send(Event("undecided", "It holds 2 series.", series=SERIES))
        else:
            pipe.send(Event("done"))
