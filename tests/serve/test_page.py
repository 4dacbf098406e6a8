"""The page in a real browser: Debian's Chromium, without a graphics card and without the net.

`.ci/run` installs it. One server and one browser serve all of these, in the order they stand here.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from analyses import make_analysis
from axe_playwright_python.sync_playwright import Axe
from phantoms import chest, chest_grid
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from test_serve_command import zipped

from chestct.labels import ClassLabel, LabelSet
from chestct.simulate import write_dicom_series
from chestct.writers.folders import write_outputs

TOKEN = "a-token-for-these-tests"
PATIENCE_MS = 240_000
expect.set_options(timeout=60_000)
LESION_MM = (77.0, -20.0, 20.0)
"""In the patient's left lung: x to the left, y to the back, z to the head."""
GRID = chest_grid((96, 96, 110), (4.0, 3.4, 3.4))


@dataclass
class Served:
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        command = [sys.executable, "-m", "chestct", "serve", str(self.folder / "results")]
        cache = str(self.folder / "cache")
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)],
            env={**os.environ, "CHESTCT_TOKEN": TOKEN, "XDG_CACHE_HOME": cache},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail("The server did not start.")

    def end(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(60)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = Served(tmp_path_factory.mktemp("page"), port)
    running.start()
    yield running
    running.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed; .ci/run installs it")
    flags = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=flags)
        yield running
        running.close()


@pytest.fixture(scope="module")
def context(browser: Browser, served: Served) -> Iterator[BrowserContext]:
    """Windows that are let in, and that note whatever goes wrong in them."""
    made = browser.new_context(viewport={"width": 1360, "height": 860}, accept_downloads=True)
    made.set_default_timeout(PATIENCE_MS)
    watch(made, served)
    yield made
    made.close()


def watch(context: BrowserContext, served: Served) -> None:
    """Let a context in; note errors, breaches of the policy and requests to elsewhere."""

    def asked(address: str) -> None:
        if not address.startswith((served.address, "data:", "blob:")):
            served.problems.append(f"asked {address}")

    context.on("console", lambda said: _note(served, said.type, said.text))
    context.on("weberror", lambda error: served.problems.append(str(error.error)))
    context.on("request", lambda request: asked(request.url))
    page = context.new_page()
    page.goto(f"{served.address}?token={TOKEN}")
    assert page.url == served.address
    page.close()


def _note(served: Served, kind: str, words: str) -> None:
    # A refused request is written to the console by the browser itself.
    if kind == "error" and "Failed to load resource" not in words:
        served.problems.append(words)


@pytest.fixture(scope="module")
def page(context: BrowserContext, served: Served) -> Page:
    opened = context.new_page()
    opened.goto(served.address)
    return opened


@pytest.fixture(scope="module")
def scan_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chest of ellipsoids with a lesion in the left lung, as a zip of DICOM files."""
    folder = tmp_path_factory.mktemp("scan")
    write_dicom_series(chest(GRID, [LESION_MM]), folder / "series")
    return zipped(folder / "series", folder / "p07.zip")


DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  const how = { dataTransfer: transfer, bubbles: true, cancelable: true };
  for (const kind of ["dragenter", "dragover", "drop"])
    window.dispatchEvent(new DragEvent(kind, how));
}"""


def drop(page: Page, name: str, content: bytes) -> None:
    page.evaluate(DROP, [name, base64.b64encode(content).decode()])


def gray_of(page: Page) -> np.ndarray:
    """The three planes as one sees them, without colour: (rows, columns), 0 to 255."""
    shot = page.locator(".stage").screenshot(timeout=PATIENCE_MS)
    return np.asarray(Image.open(io.BytesIO(shot)).convert("L"), dtype=np.float64)


def eventually(page: Page, is_so: Callable[[np.ndarray], bool]) -> None:
    """Look until the picture is as it should be: the browser draws when it comes to it."""
    deadline = time.monotonic() + 60
    while not is_so(gray_of(page)):
        assert time.monotonic() < deadline, "The picture did not become what it should be."
        page.wait_for_timeout(200)


def at(page: Page, plane: str, across_mm: float, down_mm: float) -> tuple[int, int]:
    """Column and row in the stage of a place in a plane, in millimetres from its middle."""
    stage, tile = (page.locator(s).bounding_box() for s in (".stage", f"[data-plane={plane}]"))
    assert stage is not None
    assert tile is not None
    depth, height, width = GRID.extent_mm
    wide, high = {"axial": (width, height), "coronal": (width, depth)}[plane]
    scale = min(tile["width"] / wide, tile["height"] / high)
    column = tile["x"] - stage["x"] + tile["width"] / 2 + across_mm * scale
    row = tile["y"] - stage["y"] + tile["height"] / 2 + down_mm * scale
    return round(column), round(row)


def brightness(gray: np.ndarray, place: tuple[int, int]) -> float:
    column, row = place
    return float(np.median(gray[row - 3 : row + 4, column - 3 : column + 4]))


def mean_around(gray: np.ndarray, place: tuple[int, int]) -> float:
    """Unlike a median, little moved by the two lines of the crosshair."""
    column, row = place
    return float(gray[row - 4 : row + 5, column - 4 : column + 5].mean())


def open_scan(page: Page, served: Served) -> None:
    page.goto(f"{served.address}#/")
    page.locator("th.scan a").first.click()
    page.wait_for_selector(".stage[data-state=shown]")


def stand_in(page: Page, slice_number: int) -> None:
    page.locator("#slice").evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }",
        str(slice_number),
    )
    expect(page.locator("#place")).to_contain_text(f"Slice {slice_number} of 96")


LESION_SLICE = round(LESION_MM[2] / 4.0 + 95 / 2) + 1


def test_a_zip_that_is_dropped_is_followed_to_its_answer(page: Page, scan_zip: Path) -> None:
    expect(page.locator(".empty")).to_be_visible()
    drop(page, "p07.zip", scan_zip.read_bytes())
    expect(page.locator(".card")).to_contain_text("p07.zip")
    page.wait_for_selector("th.scan a")
    expect(page.locator(".table caption")).to_have_text("1 scan")
    expect(page.locator(".card")).to_have_count(0)
    assert page.title() == "chestct"


def test_the_answer_stands_beside_the_scan_with_its_notice_in_sight(
    page: Page, served: Served
) -> None:
    open_scan(page, served)
    assert "p07" not in page.url
    assert page.title() == "chestct"
    expect(page.locator(".bar")).to_have_count(3)
    expect(page.locator(".verdict h1")).to_be_visible()
    expect(page.locator(".notice")).to_be_in_viewport()
    expect(page.locator(".notice")).to_contain_text("Not a medical device")
    expect(page.locator("#windows [aria-pressed=true]")).to_have_text("Lung")


def test_the_lesion_of_the_left_lung_is_on_the_right_of_the_picture(page: Page) -> None:
    page.keyboard.press("h")
    page.keyboard.press("l")
    stand_in(page, LESION_SLICE)
    x, y, _ = LESION_MM
    there, other_side = at(page, "axial", x, y), at(page, "axial", -x, y)
    eventually(page, lambda gray: brightness(gray, there) > brightness(gray, other_side) + 60)
    stand_in(page, LESION_SLICE + 12)
    eventually(page, lambda gray: brightness(gray, there) < brightness(gray, other_side) + 20)


def test_a_click_moves_the_crosshair_in_all_planes(page: Page) -> None:
    stand_in(page, LESION_SLICE)
    x, y, z = LESION_MM
    column, row = at(page, "axial", x, y)
    page.locator(".stage canvas").click(position={"x": column, "y": row}, force=True)
    expect(page.locator("#place")).to_contain_text(f"Slice {LESION_SLICE} of 96")
    words = page.locator("#place").inner_text().replace("−", "-")
    hounsfield = int(next(word for word in words.split("·") if "HU" in word).split()[0])
    assert hounsfield > -500
    # Coronal pictures are head up: above the lesion is lung, below it, at the same distance, not.
    there, above = (at(page, "coronal", x, place) for place in (-z, -z - 40.0))
    eventually(page, lambda gray: mean_around(gray, there) > mean_around(gray, above) + 40)


def test_slider_keys_and_windows_change_the_picture(page: Page) -> None:
    before = gray_of(page)
    page.keyboard.press("2")
    expect(page.locator("#windows [aria-pressed=true]")).to_have_text("Soft tissue")
    # Lung is black in a window for soft tissue.
    place = at(page, "axial", -70.0, 0.0)
    eventually(page, lambda gray: brightness(gray, place) < brightness(before, place) - 20)
    page.keyboard.press("1")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#place")).to_contain_text(f"Slice {LESION_SLICE + 1} of 96")
    page.keyboard.press("PageDown")
    expect(page.locator("#place")).to_contain_text(f"Slice {LESION_SLICE - 9} of 96")
    assert page.locator("#slice").input_value() == str(LESION_SLICE - 9)
    page.keyboard.press("l")
    eventually(page, lambda gray: np.abs(gray - before).max() > 30)


def test_every_output_can_be_kept(page: Page, served: Served) -> None:
    links = page.locator(".files a")
    names = links.all_inner_texts()
    assert {"result.json", "report.html", "heat-map.nii.gz", "segmentation.dcm"} <= set(names)
    with page.expect_download() as waiting:
        links.nth(names.index("result.json")).click()
    kept = Path(waiting.value.path()).read_bytes()
    assert kept == (served.folder / "results" / "p07" / "result.json").read_bytes()


def test_a_reader_says_what_they_think(page: Page, served: Served) -> None:
    page.locator("[data-verdict=unsure]").click()
    page.locator("#note").fill("too few slices")
    page.locator("form.reading button[type=submit]").click()
    expect(page.locator("form.reading .trouble")).to_contain_text("Type your name")
    page.locator("#reader").fill("anna")
    page.locator("form.reading button[type=submit]").click()
    expect(page.locator(".said")).to_have_text("anna: unsure (too few slices)")
    assert "anna" in (served.folder / "results" / "readers.csv").read_text()


def test_what_is_no_scan_gets_a_sentence_and_the_page_goes_on(page: Page, served: Served) -> None:
    page.goto(f"{served.address}#/")
    drop(page, "letter.zip", b"Good morning")
    expect(page.locator(".card.failed")).to_contain_text("letter.zip")
    page.locator(".card.failed button").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("th.scan a")).to_have_count(1)


def test_two_tabs_see_the_same_and_can_both_be_used(
    context: BrowserContext, page: Page, served: Served
) -> None:
    other = context.new_page()
    other.goto(served.address)
    expect(other.locator("th.scan a")).to_have_count(1)
    drop(other, "second.zip", b"Good evening")
    expect(page.locator(".card.failed")).to_contain_text("second.zip")
    expect(other.locator(".card.failed")).to_contain_text("second.zip")
    other.locator(".card.failed button").click()
    expect(page.locator(".card")).to_have_count(0)
    other.close()
    expect(page.locator("th.scan a")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_bars_people_from_using_it(page: Page, served: Served, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(f"{served.address}#/")
    expect(page.locator("th.scan a")).to_be_visible()
    found = serious(page)
    open_scan(page, served)
    assert found + serious(page) == []


def serious(page: Page) -> list[str]:
    """What axe-core finds that is serious or worse."""
    response = Axe().run(page).response
    return [
        f"{each['id']}: {each['nodes'][0]['html']}"
        for each in response["violations"]
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("width", [400, 2560])
def test_it_fits_narrow_and_wide_windows(page: Page, served: Served, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for view in ("#/", "scan"):
        if view == "scan":
            open_scan(page, served)
        else:
            page.goto(f"{served.address}{view}")
            expect(page.locator("th.scan a")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        expect(page.locator(".notice")).to_be_in_viewport()
    page.set_viewport_size({"width": 1360, "height": 860})


def test_without_webgl_there_are_still_pictures_and_a_sentence(
    browser: Browser, served: Served
) -> None:
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script(
        "const own = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
        "  return kind === 'webgl2' ? null : own.call(this, kind, ...rest); };"
    )
    watch(context, served)
    page = context.new_page()
    page.goto(served.address)
    page.locator("th.scan a").click()
    expect(page.locator(".remark")).to_contain_text("no WebGL2")
    picture = page.locator("img.preview")
    expect(picture).to_be_visible()
    page.wait_for_function("document.querySelector('img.preview').naturalWidth > 500")
    context.close()


def test_a_server_that_is_killed_is_missed_and_found_again(page: Page, served: Served) -> None:
    page.goto(f"{served.address}#/")
    expect(page.locator("th.scan a")).to_be_visible()
    served.end(signal.SIGKILL)
    expect(page.locator("#banner")).to_contain_text("does not answer")
    sessions = served.folder / "cache" / "chestct" / "serve"
    assert list(sessions.iterdir()) != []
    served.start()
    expect(page.locator("#banner")).to_be_hidden()
    page.reload()
    # What was classified is there; of what was sent, nothing is.
    expect(page.locator("th.scan a")).to_have_count(1)
    assert [list(each.glob("files/uploads/*")) for each in sessions.iterdir()] == [[]]
    page.locator("th.scan a").click()
    expect(page.locator(".remark")).to_contain_text("still pictures")


def test_of_several_series_one_is_chosen_on_the_page(
    page: Page, served: Served, tmp_path: Path
) -> None:
    volume = chest(GRID, [LESION_MM])
    for seed in ("one", "other"):
        write_dicom_series(volume, tmp_path / seed, uid_seed=seed, patient_id="one and the same")
    with zipfile.ZipFile(tmp_path / "both.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(tmp_path.rglob("*.dcm")):
            archive.write(file, file.relative_to(tmp_path))
    page.goto(f"{served.address}#/")
    drop(page, "both.zip", (tmp_path / "both.zip").read_bytes())
    lines = page.locator(".card.undecided li")
    expect(lines).to_have_count(2)
    expect(page.locator(".card.undecided")).to_contain_text("2 CT series that fit equally well")
    expect(lines.first).to_contain_text("96 slices, 4 mm")
    assert serious(page) == []
    chosen = lines.nth(1).locator(".uid").inner_text()
    lines.nth(1).locator("button").click()
    expect(lines).to_have_count(0)
    expect(page.locator("th.scan a")).to_have_count(2)
    written = json.loads((served.folder / "results" / "both" / "result.json").read_text())
    assert written["provenance"]["series_uid"] == chosen


def test_classes_have_the_classifiers_own_words_and_colours(page: Page, served: Served) -> None:
    names = (ClassLabel("CAP", "Bacterial", color="#aa0055"), ClassLabel("COVID-19", "Viral"))
    labels = LabelSet((*names, ClassLabel("normal", negative=True)))
    analysis = make_analysis()
    result = replace(analysis.result, labels=labels, decision="CAP", scan="own")
    write_outputs(replace(analysis, result=result), served.folder / "results" / "own")
    page.goto(f"{served.address}#/")
    page.reload()
    page.locator("th.scan a", has_text="own").click()
    expect(page.locator(".verdict h1")).to_have_text("Bacterial")
    bars = page.locator(".bar")
    expect(bars.locator("dt")).to_have_text(["Bacterial", "Viral", "normal"])
    color = "element => getComputedStyle(element).backgroundColor"
    colors = bars.locator(".track span").evaluate_all(f"all => all.map({color})")
    assert colors[0] == "rgb(170, 0, 85)"
    assert colors[1] == colors[2] != colors[0]


def test_nothing_went_wrong_unseen_and_nobody_else_was_asked(served: Served) -> None:
    expected = ("ERR_CONNECTION", "net::ERR")
    assert [each for each in served.problems if not any(e in each for e in expected)] == []
