"""A Ray cluster of two nodes on this machine, one of which is killed amid work.

Ray is not part of `[test]`: pip install -c constraints.txt '.[test,ray]', then pytest -m slow.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

Start = Callable[..., "subprocess.Popen[str]"]
NUM = 60
_HELPERS = ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent")
_PATIENCE = {"RAY_raylet_start_wait_time_s": "600", "RAY_agent_register_timeout_ms": "600000"}
"""Ray gives up on a machine that is busy otherwise."""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def start_node(environment: dict[str, str], log: Path, *more: str) -> subprocess.Popen[bytes]:
    """A node that is ready."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *more]
    command += ["--num-cpus", "1", "--object-store-memory", "80000000", "--disable-usage-stats"]
    # Without ports of its own a node waits for helpers to choose some, and not long.
    for helper in _HELPERS:
        command += [f"--{helper}-port", str(free_port())]
    with log.open("wb") as stream:
        node = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    for _ in range(600):
        if "Ray runtime started" in log.read_text(encoding="utf-8"):
            return node
        assert node.poll() is None, log.read_text(encoding="utf-8")
        time.sleep(0.5)
    kill_node(node)
    raise AssertionError("Ray did not start")


def kill_node(node: subprocess.Popen[bytes]) -> None:
    """As a machine that vanishes: all its processes at once."""
    try:
        below = psutil.Process(node.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    for each in [*below, psutil.Process(node.pid)]:
        each.kill()
    node.wait()


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    import os

    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32), encoding="ascii")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    path = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, **_PATIENCE, "PYTHONPATH": path}


@pytest.fixture
def cluster(
    environment: dict[str, str], tmp_path: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a cluster, and the node that is not its head."""
    port = str(free_port())
    said = ("--head", "--port", port, "--include-dashboard=false")
    nodes = [start_node(environment, tmp_path / "head.log", *said)]
    try:
        address = f"127.0.0.1:{port}"
        nodes.append(start_node(environment, tmp_path / "node.log", "--address", address))
        yield address, nodes[1]
    finally:
        for node in nodes:
            if node.poll() is None:
                kill_node(node)


def test_a_lost_nodes_shards_go_to_others_and_every_scan_has_one_row(
    cluster: tuple[str, subprocess.Popen[bytes]], start: Start, tmp_path: Path
) -> None:
    address, node = cluster
    out = tmp_path / "out"
    driver = start(out, NUM, 3, 4.0, 2, 0.5, "ray", f"address={address}")
    parts = out / ".batch" / "parts"
    claims = out / ".batch" / "claims"
    while driver.poll() is None and len(list(claims.glob("clock-*"))) < 2:
        time.sleep(0.5)
    while driver.poll() is None and len(list(parts.glob("*"))) < 4:
        time.sleep(0.2)
    kill_node(node)
    _, said = driver.communicate(timeout=500)
    assert driver.returncode == 0, said
    rows = (out / "answers.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert rows == [f"{each},scan,{each**2}" for each in range(NUM)]
    assert list(claims.glob("*.2")), "a claim of the lost node was taken over"


def test_a_cluster_without_the_token_is_not_joined(
    cluster: tuple[str, subprocess.Popen[bytes]],
    start: Start,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    other.write_text(secrets.token_hex(32), encoding="ascii")
    said = ("ray", f"address={cluster[0]}")
    driver = start(tmp_path / "out", 4, 2, 4.0, 1, 0.0, *said, RAY_AUTH_TOKEN_PATH=str(other))
    _, words = driver.communicate(timeout=300)
    assert driver.returncode == 1
    assert "Ray cannot be used" in words
