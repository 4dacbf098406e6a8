"""A real archive takes our objects and gives them back: Orthanc, on loopback ports of its own.

Debian's packages orthanc, orthanc-dicomweb and dcmtk; `.ci/run` installs them.
"""

from __future__ import annotations

import email.policy
import io
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path

import pydicom
import pytest
from dicom_scans import WANTED, analysed, small_scan
from pydicom.dataset import Dataset

from chestct.writers import WriteOptions
from chestct.writers.folders import write_outputs

PLUGINS = Path("/usr/share/orthanc/plugins")
OBJECTS = (*WANTED, "dicom_sc")


@dataclass(frozen=True)
class Archive:
    """A running Orthanc."""

    http_port: int
    dicom_port: int

    def get(self, path: str, accept: str = "*/*") -> tuple[bytes, str]:
        """Body and content type of an answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}{path}", headers={"Accept": accept}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read(), answer.headers["Content-Type"]


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def find_tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed; .ci/run installs it")
    return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    program = find_tool("Orthanc")
    if not (PLUGINS / "libOrthancDicomWeb.so").exists():
        pytest.skip("orthanc-dicomweb is not installed; .ci/run installs it")
    folder = tmp_path_factory.mktemp("orthanc")
    http_port, dicom_port = free_ports(2)
    settings = {
        "Name": "chestct test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http_port,
        "DicomPort": dicom_port,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
        "DicomWeb": {"Enable": True},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(
            [program, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        running = Archive(http_port, dicom_port)
        wait_until_it_answers(running, server, folder / "log.txt")
        yield running
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_until_it_answers(archive: Archive, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            archive.get("/system")
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"Orthanc did not start: {log.read_text()}")


@pytest.fixture(scope="module")
def sent(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The objects, by name, after the archive took all of them by C-STORE."""
    storescu = find_tool("storescu")
    folder = tmp_path_factory.mktemp("sent")
    analysis = analysed(small_scan(folder / "scan"))
    written = write_outputs(analysis, folder / "out", WriteOptions(names=OBJECTS)).files
    files = {name: written[name] for name in OBJECTS}
    files["dicom_sc"] = sorted(files["dicom_sc"].iterdir())[0]
    address = ("-aec", "ORTHANC", "127.0.0.1", str(archive.dicom_port))
    for path in files.values():
        command = [storescu, "-R", *address, str(path)]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert finished.returncode == 0, finished.stderr
    return files


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_comes_back_over_dicomweb_as_it_was_sent(
    name: str, archive: Archive, sent: dict[str, Path]
) -> None:
    original = pydicom.dcmread(sent[name])
    body, kind = archive.get(
        f"/dicom-web/studies/{original.StudyInstanceUID}"
        f"/series/{original.SeriesInstanceUID}/instances/{original.SOPInstanceUID}",
        accept='multipart/related; type="application/dicom"; transfer-syntax=*',
    )
    (part,) = parts_of(body, kind)
    returned = pydicom.dcmread(io.BytesIO(part))
    assert returned == original
    assert encoded(returned) == encoded(original)


def test_one_study_holds_all_of_them(archive: Archive, sent: dict[str, Path]) -> None:
    study = pydicom.dcmread(sent["dicom_sr"]).StudyInstanceUID
    body, _ = archive.get(f"/dicom-web/studies/{study}/series", accept="application/dicom+json")
    modalities = {item["00080060"]["Value"][0] for item in json.loads(body)}
    assert modalities == {pydicom.dcmread(path).Modality for path in sent.values()}
    assert {"SEG", "SR", "OT"} <= modalities


def test_the_archive_keeps_the_files_of_a_post_byte_for_byte(
    archive: Archive, sent: dict[str, Path], tmp_path: Path
) -> None:
    original = pydicom.dcmread(sent["dicom_seg"])
    original.SOPInstanceUID = original.file_meta.MediaStorageSOPInstanceUID = "2.25.4711"
    original.save_as(tmp_path / "copy.dcm", enforce_file_format=True)
    content = (tmp_path / "copy.dcm").read_bytes()
    request = urllib.request.Request(
        f"http://127.0.0.1:{archive.http_port}/instances", data=content, method="POST"
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        key = json.load(answer)["ID"]
    assert archive.get(f"/instances/{key}/file")[0] == content


def parts_of(body: bytes, kind: str) -> list[bytes]:
    """The parts of a multipart answer."""
    whole = b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body
    message = BytesParser(policy=email.policy.HTTP).parsebytes(whole)
    parts = [part.get_payload(decode=True) for part in message.iter_parts()]
    return [part for part in parts if isinstance(part, bytes)]


def encoded(dataset: Dataset) -> bytes:
    """A data set as bytes, without the file's own header, in which an archive names itself."""
    stream = io.BytesIO()
    bare = Dataset(dataset)
    bare.save_as(stream, implicit_vr=False, little_endian=True)
    return stream.getvalue()
