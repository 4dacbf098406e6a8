"""Nobody gets in without the token, from another page or under another name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
import serve_workers
from explained import make_explained
from starlette.testclient import TestClient

from chestct.serve.app import _PAGE_FILES, make_app
from chestct.serve.results import number_of
from chestct.serve.uploads import _MOST_BYTES, ServeSettings, is_loopback
from chestct.writers.folders import write_outputs

TOKEN = "a-token-for-these-tests"
ADDRESS = "http://127.0.0.1:8642"
OWN = {"Origin": ADDRESS}
SCAN = f"/api/scans/{number_of('p07')}"

Connect = Callable[..., TestClient]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_outputs(make_explained(), folder / "p07")
    return folder


@pytest.fixture
def connect(results: Path, tmp_path: Path) -> Connect:
    """A client that is let in, unless it is said otherwise."""

    def make(*, is_in: bool = True, address: str = ADDRESS, **settings: object) -> TestClient:
        chosen = ServeSettings(TOKEN, tmp_path, **{"results": results, **settings})  # type: ignore[arg-type]
        app = make_app(chosen, serve_workers.answer_at_once)
        client = TestClient(app, base_url=address, follow_redirects=False)
        if is_in:
            assert client.get("/", params={"token": TOKEN}).status_code == 303
        return client

    return make


def test_the_first_address_opens_the_page_and_its_token_is_gone_from_it(connect: Connect) -> None:
    client = connect(is_in=False)
    entered = client.get("/", params={"token": TOKEN})
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    page = client.get("/")
    assert page.status_code == 200
    assert "<title>chestct</title>" in page.text


@pytest.mark.parametrize("path", ["/", "/?token=wrong", "/page/app.js", "/api/scans", SCAN])
def test_without_the_token_there_is_a_sentence_and_nothing_else(
    connect: Connect, path: str
) -> None:
    answer = connect(is_in=False).get(path)
    assert answer.status_code == 403
    assert "chestct serve" in answer.json()["error"]
    assert "set-cookie" not in answer.headers


def test_a_cookie_that_was_made_up_opens_nothing(connect: Connect) -> None:
    client = connect(is_in=False)
    assert client.get("/api/scans", headers={"Cookie": "chestct-8642=1234"}).status_code == 403


def test_a_cookie_outlives_a_server_that_is_started_again_with_its_token(
    connect: Connect,
) -> None:
    first, second = connect(), connect(is_in=False)
    second.cookies = first.cookies
    assert second.get("/api/scans").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8642", "", "[bad"])
def test_another_name_of_the_server_is_refused(connect: Connect, host: str) -> None:
    answer = connect().get("/api/scans", headers={"Host": host})
    assert answer.status_code == 421


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:8642", "[::1]:8642"])
def test_names_of_this_computer_are_accepted_on_any_port(connect: Connect, host: str) -> None:
    # A tunnel ends at another port.
    answer = connect(is_in=False).get("/", params={"token": TOKEN}, headers={"Host": host})
    assert answer.status_code == 303


def test_a_name_that_was_given_is_accepted_and_its_cookie_wants_tls(connect: Connect) -> None:
    client = connect(is_in=False, names=("ct.example",), is_secure=True)
    entered = client.get("/", params={"token": TOKEN}, headers={"Host": "ct.example"})
    assert "Secure" in entered.headers["set-cookie"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": ADDRESS, "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_another_page_changes_nothing(connect: Connect, headers: dict[str, str]) -> None:
    client = connect()
    said = {"name": "p", "files": [["p/a", 1]]}
    assert client.post("/api/uploads", json=said, headers=headers).status_code == 403
    assert client.delete("/api/jobs/1", headers=headers).status_code == 403
    assert client.post("/api/uploads", json=said, headers=OWN).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://e.example"}, {"Sec-Fetch-Site": "same-site"}]
)
def test_another_page_reads_nothing(connect: Connect, headers: dict[str, str]) -> None:
    assert connect().get("/api/scans", headers=headers).status_code == 403


def test_every_answer_forbids_scripts_and_content_of_others(connect: Connect) -> None:
    client = connect()
    for path in ("/", "/page/app.js", "/api/scans", "/api/nothing", f"{SCAN}/preview"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_a_report_may_run_nothing_though_it_lies_on_the_same_server(connect: Connect) -> None:
    policy = connect().get(f"{SCAN}/report").headers["content-security-policy"]
    assert policy.endswith("sandbox")
    assert "script-src" not in policy


def test_the_page_holds_no_script_or_style_of_its_own(connect: Connect) -> None:
    page = connect().get("/").text
    assert re.findall(r"<script(?! type=\"module\" src=\"/page/)", page) == []
    assert "<style" not in page
    assert "style=" not in page
    assert re.findall(r"(?:src|href)=\"(?!/page/|#)", page) == []


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e%2fapp.py",
        "/page/niivue.LICENSE.txt",
        "/api/scans/../../etc/passwd",
        "/api/scans/p07",
        "/api/scans/..%2f..%2fetc/preview",
        f"{SCAN}/files/999",
        f"{SCAN}/files/..%2fresult.json",
        f"{SCAN}/view/..%2f..%2fresult.json",
        f"{SCAN}/view/facts.json",
        "/api/evaluation/pictures/0",
    ],
)
def test_paths_lead_nowhere_but_to_what_is_listed(connect: Connect, path: str) -> None:
    answer = connect().get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_links_in_a_folder_of_results_are_not_followed(connect: Connect, results: Path) -> None:
    outside = results.parent / "secret.json"
    outside.write_text("{}")
    (results / "linked").symlink_to(results / "p07")
    (results / "p07" / "report.dcm").symlink_to(outside)
    try:
        client = connect()
        assert [row["scan"] for row in client.get("/api/scans").json()["scans"]] == ["p07"]
        names = [file["name"] for file in client.get(SCAN).json()["files"]]
        assert names == ["result.json", "report.html", "preview.png"]
    finally:
        (results / "linked").unlink()
        (results / "p07" / "report.dcm").unlink()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"name": 1, "files": []}',
        b'{"name": "p", "files": [["a"]]}',
        b'{"name": "p", "files": [["a", -1]]}',
        b'{"name": "p", "files": [["a", true]]}',
        b'{"name": "p", "files": [["a", 1.5]]}',
        b'{"name": "p", "files": [["", 1]]}',
    ],
)
def test_what_no_page_would_send_is_refused_in_a_sentence(connect: Connect, content: bytes) -> None:
    answer = connect().post("/api/uploads", content=content, headers=OWN)
    assert answer.status_code == 400
    assert answer.json()["error"].endswith(".")


def test_a_body_without_end_is_not_read_to_its_end(connect: Connect) -> None:
    answer = connect().post("/api/uploads", content=b" " * (2**23 + 1), headers=OWN)
    assert answer.status_code == 413


def test_three_gigabytes_are_refused_before_a_byte_is_sent(
    connect: Connect, tmp_path: Path
) -> None:
    said = {"name": "big.nii", "files": [["big.nii", 3_000_000_000]]}
    answer = connect().post("/api/uploads", json=said, headers=OWN)
    assert answer.status_code == 413
    assert f"{_MOST_BYTES / 1e9:.2f} GB are allowed" in answer.json()["error"]
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_scan_is_sent_in_three_steps_and_waits_for_its_turn(
    connect: Connect, tmp_path: Path
) -> None:
    client = connect()
    said = {"name": "DOE^JOHN", "files": [["DOE^JOHN/1.dcm", 2], ["DOE^JOHN/2.dcm", 2]]}
    upload = client.post("/api/uploads", json=said, headers=OWN).json()
    address = f"/api/uploads/{upload['id']}"
    assert client.post(f"{address}/done", headers=OWN).status_code == 409
    for index in range(2):
        assert client.put(f"{address}/{index}", content=b"ab", headers=OWN).status_code == 200
    job = client.post(f"{address}/done", headers=OWN).json()["job"]
    # Nothing in an address says whose scan it is.
    assert re.fullmatch(r"[0-9a-f]{16}", job)
    assert re.fullmatch(r"[0-9a-f]{16}", upload["id"])
    assert client.delete(f"/api/jobs/{job}", headers=OWN).status_code == 200
    assert list((tmp_path / "uploads").iterdir()) == []


def test_what_breaks_inside_is_said_without_details(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chestct.serve import results as results_module

    def fail(*_: object) -> None:
        raise RuntimeError("DOE^JOHN")

    monkeypatch.setattr(results_module.Results, "entries", fail)
    client = connect()
    client = TestClient(
        client.app, base_url=ADDRESS, cookies=client.cookies, raise_server_exceptions=False
    )
    answer = client.get("/api/scans")
    assert answer.status_code == 500
    assert (
        answer.json()["error"] == "Internal error (RuntimeError). Report it, if it happens again."
    )


@pytest.mark.parametrize(
    ("host", "is_so"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.8.8.8", True),
        ("10.0.0.1", False),
        ("ct.example", False),
    ],
)
def test_loopback_is_told_from_all_else(host: str, is_so: bool) -> None:
    assert is_loopback(host) is is_so


def test_the_page_is_whole_and_niivue_is_the_file_that_came_from_npm(connect: Connect) -> None:
    client = connect()
    for name in _PAGE_FILES:
        assert client.get(f"/page/{name}").status_code == 200, name
    folder = resources.files("chestct.serve").joinpath("page")
    digest = hashlib.sha256(folder.joinpath("niivue.js").read_bytes()).hexdigest()
    assert digest in folder.joinpath("niivue.LICENSE.txt").read_text(encoding="utf-8")
    given = {path.name for path in folder.iterdir() if path.name != "niivue.LICENSE.txt"}
    assert given == set(_PAGE_FILES)
