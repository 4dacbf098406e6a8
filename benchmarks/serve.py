"""The web page beside the bare command: the time to the answer, to the first picture, and memory.

    python benchmarks/serve.py [--scans 100] [SCAN]

One server and one process that classifies with the same loaded classifier, turn by turn. The first
picture is that of Debian's Chromium without a graphics card, where that is installed. Real scans
come from CHESTCT_DATA or ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import psutil
from measuring import real_scan, run

TOKEN = "a-token-for-this-benchmark"
ROUNDS = 5
GOAL = 1.15
PICTURE_GOAL_S = 15.0


def start_server(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A server of its own, and its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "chestct", "serve", str(folder / "results"), "--port", "0"],
        env={**os.environ, "CHESTCT_TOKEN": TOKEN, "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    return server, server.stdout.readline().split()[1].split("/?")[0]


def packed(scan: Path, folder: Path) -> Path:
    """The scan as a zip, or the file that it is."""
    if scan.is_file():
        return scan
    path = folder / f"{scan.name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(path for path in scan.rglob("*") if path.is_file()):
            archive.write(file, file.relative_to(scan.parent).as_posix())
    return path


def served_s(client: httpx2.Client, scan: Path) -> tuple[float, str]:
    """Seconds from the last byte to the answer; and the identifier of its page."""
    content = scan.read_bytes()
    said = {"name": scan.name, "files": [[scan.name, len(content)]]}
    upload = client.post("/api/uploads", json=said).json()["id"]
    client.put(f"/api/uploads/{upload}/0", content=content)
    start = time.perf_counter()
    job = client.post(f"/api/uploads/{upload}/done").json()["job"]
    seconds, page = 0.0, ""
    with client.stream("GET", "/api/events") as stream:
        for line in stream.iter_lines():
            if not line.startswith("data:"):
                continue
            (found,) = [each for each in json.loads(line[5:]) if each["id"] == job]
            if found["scan"] and not page:
                seconds, page = time.perf_counter() - start, found["scan"]
            if found["state"] == "failed":
                raise SystemExit(found["stage"])
            if found["state"] == "done":
                break
    return seconds, page


def bare_s(scan: Path, classifier: object, engine: object) -> float:
    """Seconds that the same takes in a function call of a process that has loaded everything."""
    from chestct.explain import AUTO
    from chestct.pipeline import analyse_scan

    start = time.perf_counter()
    analyse_scan(scan, classifier, engine=engine, explain=AUTO)  # type: ignore[arg-type]
    return time.perf_counter() - start


def first_picture_s(address: str, page_number: str) -> float | None:
    """Seconds from asking for a scan's page to its picture, without a graphics card."""
    program = shutil.which("chromium")
    if program is None:
        return None
    from playwright.sync_api import sync_playwright

    flags = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{address}/?token={TOKEN}")
        page.wait_for_selector("th.scan a", timeout=120_000)
        start = time.perf_counter()
        page.goto(f"{address}/#/scan/{page_number}")
        page.wait_for_selector(".stage[data-state=shown]", timeout=300_000)
        page.locator(".stage").screenshot(timeout=300_000)
        seconds = time.perf_counter() - start
        browser.close()
    return seconds


def memory_mb(server: subprocess.Popen[str]) -> list[float]:
    """Resident memory of the server and of the process that classifies, which is the largest."""
    process = psutil.Process(server.pid)
    return [
        process.memory_info().rss / 1e6,
        max(each.memory_info().rss for each in process.children()) / 1e6,
    ]


def main() -> None:
    """Measure, and print each figure beside its goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path, nargs="?")
    parser.add_argument("--scans", type=int, default=100, help="Scans for the memory; 0: none.")
    options = parser.parse_args()
    from chestct.classifier import load_classifier
    from chestct.engines import make_engine

    classifier = load_classifier()
    engine = make_engine(classifier, "auto")
    with TemporaryDirectory() as place:
        folder = Path(place)
        scan = packed(options.scan or real_scan(), folder)
        server, address = start_server(folder)
        try:
            client = httpx2.Client(
                base_url=address, headers={"Origin": address}, timeout=600, follow_redirects=True
            )
            client.get("/", params={"token": TOKEN})
            served_s(client, scan)
            bare_s(scan, classifier, engine)
            served, bare, page = [], [], ""
            for _ in range(ROUNDS):
                seconds, page = served_s(client, scan)
                served.append(seconds)
                bare.append(bare_s(scan, classifier, engine))
            ours, theirs = statistics.median(served), statistics.median(bare)
            print(f"last byte to answer          {ours:6.2f} s")
            print(f"the same without a server    {theirs:6.2f} s")
            print(f"ratio                        {ours / theirs:6.2f}   (goal {GOAL})")
            picture = first_picture_s(address, page)
            words = (
                "no chromium" if picture is None else f"{picture:6.2f} s (goal {PICTURE_GOAL_S})"
            )
            print(f"first picture, no GPU        {words}")
            print("memory in MB                 server  worker")
            for number in range(options.scans + 1):
                if number % max(1, options.scans // 10) == 0:
                    taken = "  ".join(f"{each:6.0f}" for each in memory_mb(server))
                    print(f"after {number:4d} more scans       {taken}", flush=True)
                if number < options.scans:
                    served_s(client, scan)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    run(main)
