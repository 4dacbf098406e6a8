"""`chestct serve` as a command: a server of its own, asked as a page asks it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from chestct.cli import main
from chestct.errors import SeveralSeriesError
from chestct.readers import read_volume
from chestct.simulate import write_dicom_series

TOKEN = "a-token-for-these-tests"
PATIENCE_S = 240


@dataclass
class Server:
    process: subprocess.Popen[str]
    client: httpx2.Client
    results: Path
    cache: Path

    def send(self, path: Path) -> dict[str, object]:
        """Send a file as the page does, and wait until its job is over, or asks for more."""
        content = path.read_bytes()
        said = {"name": path.name, "files": [[path.name, len(content)]]}
        begun = self.client.post("/api/uploads", json=said).json()
        address = f"/api/uploads/{begun['id']}"
        assert self.client.put(f"{address}/0", content=content).status_code == 200
        return self.follow(self.client.post(f"{address}/done").json()["job"])

    def follow(self, number: str) -> dict[str, object]:
        """Wait until a job is over, or asks for more."""
        with self.client.stream("GET", "/api/events") as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                (job,) = [job for job in json.loads(line[5:]) if job["id"] == number]
                if job["state"] in ("done", "failed", "undecided", "cancelled"):
                    return dict(job)
        raise AssertionError("The server ended amid a job.")

    def uploads(self) -> list[str]:
        """What the session holds of scans that were sent."""
        return [path.name for path in self.cache.glob("chestct/serve/*/files/uploads/*/*")]


@pytest.fixture(scope="module")
def server(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    results, cache = folder / "results", folder / "cache"
    command = [sys.executable, "-m", "chestct", "serve", str(results), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--classifier", tiny, "--engine", "torch"],
        # As many threads as these tests have: with others, sums differ in their last digits.
        env={
            **os.environ,
            "CHESTCT_TOKEN": TOKEN,
            "XDG_CACHE_HOME": str(cache),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    address = re.search(r"Open (http://127\.0\.0\.1:\d+)/\?token=", process.stdout.readline())
    assert address is not None
    origin = address[1]
    with httpx2.Client(
        base_url=origin, headers={"Origin": origin}, timeout=PATIENCE_S, follow_redirects=True
    ) as client:
        assert client.get("/", params={"token": TOKEN}).status_code == 200
        yield Server(process, client, results, cache)
    process.kill()
    process.wait()


def zipped(scan: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(scan.iterdir()):
            archive.write(file, f"series/{file.name}")
    return path


def test_a_scan_that_is_sent_gets_the_very_results_of_classify(
    server: Server, scan: Path, tiny: str, tmp_path: Path
) -> None:
    sent = zipped(scan, tmp_path / "p07.zip")
    job = server.send(sent)
    assert job["state"] == "done"
    served = server.results / "p07"
    out = tmp_path / "out"
    said = ["--classifier", tiny, "--engine", "torch", "--explain", "--write", "all"]
    assert main(["classify", str(sent), "--out", str(out), *said]) == 0
    names = sorted(path.name for path in served.iterdir())
    assert names == sorted(path.name for path in (out / "p07").iterdir())
    ours, theirs = (
        json.loads((folder / "p07" / "result.json").read_text()) for folder in (server.results, out)
    )
    del ours["timings_s"], theirs["timings_s"]
    assert ours == theirs
    assert (served / "lungs.nii.gz").read_bytes() == (out / "p07" / "lungs.nii.gz").read_bytes()
    # Nobody else on this computer may read them.
    assert {path.stat().st_mode & 0o077 for path in (server.results, *served.iterdir())} == {0}
    answer = server.client.get(f"/api/scans/{job['scan']}").json()
    assert answer["scan"] == "p07.zip"
    assert answer["view"]["shape"] == answer["view"]["scan_shape"]
    assert server.client.get(f"/api/scans/{job['scan']}/view/layer.nii").status_code == 200
    for number, file in enumerate(answer["files"]):
        taken = server.client.get(f"/api/scans/{job['scan']}/files/{number}")
        assert taken.content == (served / file["name"]).read_bytes()


@pytest.mark.parametrize("kind", ["text", "bomb", "climbing"])
def test_what_is_no_scan_is_said_and_nothing_of_it_stays(
    server: Server, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"{kind}.zip"
    words = {"text": "", "bomb": "would unpack", "climbing": "leads out of the zip"}[kind]
    if kind == "text":
        path.write_text("Good morning")
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            if kind == "bomb":
                archive.writestr("a.dcm", bytes(300_000_000))
            else:
                archive.writestr("../../a.dcm", "x")
    kept = server.uploads()
    job = server.send(path)
    assert job["state"] == "failed"
    assert path.name in str(job["stage"])
    assert words in str(job["stage"])
    # Not where it lay, nor how the server is made.
    assert str(server.cache) not in str(job["stage"])
    assert "Traceback" not in str(job["stage"])
    deadline = time.monotonic() + 30
    while server.uploads() != kept and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.uploads() == kept
    assert not (server.results / kind).exists()
    assert server.client.get("/api/scans").status_code == 200


def test_a_connection_that_breaks_leaves_nothing(server: Server) -> None:
    kept = server.uploads()
    said = {"name": "cut.nii", "files": [["cut.nii", 1_000_000]]}
    number = server.client.post("/api/uploads", json=said).json()["id"]
    cookie = "; ".join(f"{name}={value}" for name, value in server.client.cookies.items())
    host, port = server.client.base_url.host, server.client.base_url.port
    assert port is not None
    with socket.create_connection((host, port)) as connection:
        lines = (
            f"PUT /api/uploads/{number}/0 HTTP/1.1",
            f"Host: {host}:{port}",
            f"Origin: http://{host}:{port}",
            f"Cookie: {cookie}",
            "Content-Length: 1000000",
        )
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + b"x" * 1000)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if server.client.post(f"/api/uploads/{number}/done").status_code == 404:
            break
        time.sleep(0.05)
    assert server.uploads() == kept
    assert server.client.post(f"/api/uploads/{number}/done").status_code == 404


def test_the_full_scan_and_a_reading_are_to_be_had(server: Server) -> None:
    (row,) = server.client.get("/api/scans").json()["scans"]
    address = f"/api/scans/{row['id']}"
    said = {"reader": "anna", "verdict": "right", "label": row["decision"], "note": "as I see it"}
    assert server.client.post(f"{address}/readings", json=said).status_code == 200
    (row,) = server.client.get("/api/scans").json()["scans"]
    assert row["readings"] == ["right"]
    assert "reader_anna" in server.client.get("/api/readers.csv").text
    assert server.client.get("/api/scans.csv").text.startswith("scan,decision,probability")
    number = server.client.post(f"{address}/view", json={"whole": True}).json()["job"]
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        whole = server.client.get(f"{address}/view/whole.nii")
        if whole.status_code == 200:
            break
        time.sleep(0.1)
    assert whole.content[344:348] == b"n+1\0"
    assert re.fullmatch("[0-9a-f]{16}", number)


def test_of_several_series_one_is_chosen_and_classified(
    server: Server, scan: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    volume = read_volume(scan)
    for seed in ("one", "other"):
        write_dicom_series(volume, both / seed, uid_seed=seed, patient_id="one and the same")
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for file in sorted(both.rglob("*.dcm")):
            archive.write(file, file.relative_to(both))
    with pytest.raises(SeveralSeriesError) as raised:
        read_volume(tmp_path / "both.zip")
    job = server.send(tmp_path / "both.zip")
    assert job["state"] == "undecided"
    assert job["stage"] == str(raised.value).splitlines()[0]
    # As the terminal says it, the same series in the same order.
    assert job["series"] == [list(each) for each in raised.value.series.items()]
    assert "both.zip" in server.uploads()
    address = f"/api/jobs/{job['id']}/series"
    for said in ({}, {"series": 1}, {"series": "1.9"}, []):
        assert server.client.post(address, json=said).status_code == 400
    _, chosen = raised.value.series
    assert server.client.post(address, json={"series": chosen}).status_code == 200
    job = server.follow(str(job["id"]))
    assert job["state"] == "done"
    document = json.loads((server.results / "both" / "result.json").read_text())
    assert document["provenance"]["series_uid"] == chosen
    # Looking at it later on asks for no choice.
    view = server.client.post(f"/api/scans/{job['scan']}/view", json={"whole": True}).json()
    assert server.follow(view["job"])["state"] == "done"


def test_ended_it_takes_all_scans_that_were_sent_with_it(server: Server) -> None:
    assert server.uploads() != []
    server.process.send_signal(signal.SIGTERM)
    said, _ = server.process.communicate(timeout=60)
    assert server.process.returncode == 143
    assert list((server.cache / "chestct" / "serve").iterdir()) == []
    assert TOKEN not in said
    assert "p07" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "192.0.2.1"], "--token TEXT or the variable CHESTCT_TOKEN"),
        (["--host", "192.0.2.1", "--token", "short"], "5 characters, 16 or more"),
        (["--host", "0.0.0.0", "--token", TOKEN], "the very address or name"),
        (["--keep-scans"], "Name it: --scans DIR"),
        (["--evaluation", "not-there"], "not-there does not exist"),
        (["--write", "nothing"], "nothing"),
        (["--host", "192.0.2.1", "--token", TOKEN], "Choose another --port"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_port_that_is_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"port {port}: address already in use" in said


def test_without_its_packages_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("chestct.extras.is_installed", lambda package: package != "uvicorn")
    assert main(["serve"]) == 2
    assert "pip install 'chestct[serve]'" in capsys.readouterr().err
