"""Workers as actors on a Ray cluster, each with its classifier loaded once."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from chestct.cluster import WorkerEnd
from chestct.cluster.job import ClusterError
from chestct.errors import ChestCTError
from chestct.extras import import_extra

_OPTIONS: Final = ("address", "cpus", "gpus")
_ANSWERS_WITHIN_S: Final = 5.0
_AUTHENTICATION: Final = "RAY_AUTH_MODE"


class RayCrew:
    """Actors, each one worker; Ray puts them where CPUs or GPUs are free.

    Ray's token authentication is on and its usage statistics are off. An actor whose node is lost
    ends; its shard goes to others when its lease is over, and another actor is started.

    Args:
        folder: The job's, on a disk that all nodes see.
        options: `address` of the cluster's head (HOST:PORT; without it a cluster of this machine
            alone is started), `cpus` and `gpus` that each actor takes (1 and 0).
        num_workers: How many there will be at once.

    Raises:
        ClusterError: An option is unknown, or nobody answers at the address.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, folder: Path, options: Mapping[str, str], num_workers: int) -> None:
        for name in options:
            if name not in _OPTIONS:
                msg = f"The executor 'ray' has no option '{name}'. Known: {', '.join(_OPTIONS)}."
                raise ClusterError(msg)
        address = options.get("address")
        if address is not None:
            _require_answer(address)
        self._ray = _ray_with_tokens()
        self._own = address is None
        self._folder = folder
        try:
            size = {"num_cpus": num_workers} if address is None else {"address": address}
            self._ray.init(
                **size,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                configure_logging=False,
            )
            self._actor = self._ray.remote(_Worker).options(
                num_cpus=float(options.get("cpus", 1)), num_gpus=float(options.get("gpus", 0))
            )
        except Exception as error:
            # Ray raises plain exceptions, of all kinds.
            msg = f"Ray cannot be used: {str(error).strip().splitlines()[0]}"
            raise ClusterError(msg) from error
        self._running: dict[Any, Any] = {}

    def start(self, num: int) -> None:
        """Start so many actors more."""
        for _ in range(num):
            actor = self._actor.remote()
            self._running[actor.work.remote(str(self._folder))] = actor

    def ended(self) -> list[WorkerEnd]:
        """Those that ended since this was asked last."""
        waiting = list(self._running)
        gone, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [self._how(each) for each in gone]

    def stop(self) -> None:
        """End those that are left, and the connection."""
        for actor in self._running.values():
            self._ray.kill(actor)
        self._running = {}
        self._ray.shutdown()

    def _how(self, reference: Any) -> WorkerEnd:
        del self._running[reference]
        try:
            return WorkerEnd(self._ray.get(reference))
        except self._ray.exceptions.RayError:
            return WorkerEnd(is_lost=True)


class _Worker:
    """What an actor runs."""

    def work(self, folder: str) -> str:
        """Work; the reason why it would not, or nothing."""
        from chestct.cluster.worker import work_on

        try:
            work_on(Path(folder))
        except ChestCTError as error:
            return str(error)
        return ""


def _ray_with_tokens() -> Any:
    """Ray, asked for tokens and for no statistics; both are read when it is imported."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if os.environ.setdefault(_AUTHENTICATION, "token") == "disabled":
        msg = (
            f"{_AUTHENTICATION}=disabled lets everybody who reaches the cluster run programs on "
            f"it. Start it with {_AUTHENTICATION}=token, and unset the variable here."
        )
        raise ClusterError(msg)
    return import_extra("ray", extra="ray")


def _require_answer(address: str) -> None:
    """Refuse an address at which nobody answers; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterError(f"The address of a Ray cluster is HOST:PORT, not '{address}'.")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS_WITHIN_S).close()
    except OSError as error:
        reason = (error.strerror or str(error) or type(error).__name__).lower()
        msg = (
            f"No Ray cluster answers at {address}: {reason}. Start it there (ray start --head), or "
            "correct the option 'address'."
        )
        raise ClusterError(msg) from error
