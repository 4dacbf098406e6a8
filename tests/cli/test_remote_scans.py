"""Scans and tables on other storage give the answers that they give on a disk."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import nibabel
import numpy as np
import pytest
from here import work_here
from labelled_scans import write_scan
from object_server import served
from tiny import save_tiny_classifier

from chestct import read_volume
from chestct.cli import main
from chestct.datasets.manifest import read_manifest, write_manifest
from chestct.datasets.sharing import ExportSettings, export_scans
from chestct.datasets.store import Cache, CacheError, LabelledScans
from chestct.errors import ReadError
from chestct.preprocess.recipes import find_recipe
from chestct.readers.masks import read_lungs
from chestct.remote import sha256_of
from chestct.storage import file_sha256
from chestct.studies.model_audit_findings import JSON_FILE

Output = pytest.CaptureFixture[str]
SECRET = "aVerySecretThing"


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of copies, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "chestct" / "remote"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny classifier that finds lungs by rules of thumb, which takes no time."""
    folder = tmp_path_factory.mktemp("quick") / "classifier"
    return str(save_tiny_classifier(folder, lungs="published"))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory, scan: Path) -> Path:
    """A folder of DICOM, the same as a zip, two NIfTI files, and tables of them."""
    folder = tmp_path_factory.mktemp("storage") / "lists"
    shutil.copytree(scan, folder / "p07")
    shutil.make_archive(str(folder / "p08"), "zip", scan)
    for number in range(2):
        write_scan(folder / f"s{number}.nii.gz", number)
    image = nibabel.load(folder / "s0.nii.gz")
    inside = (np.asanyarray(image.dataobj) < -500).astype(np.uint8)  # type: ignore[attr-defined]
    nibabel.save(nibabel.Nifti1Image(inside, image.affine), folder / "lungs.nii.gz")  # type: ignore[attr-defined]
    (folder / "scans.csv").write_text("scan\np07\np08.zip\ns0.nii.gz\ngone.nii.gz\n")
    lines = [f"s{number}.nii.gz,patient {number},{label}" for number, label in enumerate("ab")]
    (folder / "labelled.csv").write_text("\n".join(["scan,patient,label", *lines, ""]))
    return folder


@pytest.fixture(scope="module")
def web(scans: Path) -> Iterator[str]:
    """Where the folder is served."""
    with served(scans.parent) as address:
        yield f"{address}/lists"


@pytest.fixture
def memory(scans: Path) -> Iterator[str]:
    """The same folder in the memory of this process."""
    system = fsspec.filesystem("memory")
    system.put(str(scans), "/lists", recursive=True)
    yield "memory://lists"
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "timings_s"}


def how(tiny: str) -> tuple[str, ...]:
    return ("--classifier", tiny, "--engine", "torch")


def answers(*arguments: str, tiny: str, capsys: Output) -> list[dict[str, Any]]:
    assert main(["classify", *arguments, "--json", *how(tiny)]) == 0
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    return [without_times(json.loads(line)) for line in printed.out.splitlines()]


@pytest.mark.parametrize("where", ["memory", "web"])
def test_answers_are_those_on_the_same_scans_of_a_disk(
    where: str, scans: Path, tiny: str, capsys: Output, request: pytest.FixtureRequest
) -> None:
    names = ("p07", "p08.zip", "s0.nii.gz")
    address = request.getfixturevalue(where)
    on_disk = answers(*(f"{scans}/{name}" for name in names), tiny=tiny, capsys=capsys)
    elsewhere = answers(*(f"{address}/{name}" for name in names), tiny=tiny, capsys=capsys)
    assert elsewhere == on_disk
    assert [answer["scan"] for answer in on_disk] == list(names)


def test_outputs_are_written_about_a_scan_at_an_address(
    web: str, scans: Path, tiny: str, tmp_path: Path
) -> None:
    found = {}
    for name, scan in {"disk": f"{scans}/p08.zip", "web": f"{web}/p08.zip?sig={SECRET}"}.items():
        out = tmp_path / name
        command = ["classify", scan, "--out", str(out), "--write", "json,html,dicom_sr", *how(tiny)]
        assert main([*command, "--deterministic"]) == 0
        found[name] = {
            path.relative_to(out).as_posix(): path.read_bytes()
            for path in out.rglob("*")
            if path.is_file()
        }
    assert SECRET.encode() not in b"".join(found["web"].values())
    assert set(found["web"]) == set(found["disk"])
    assert found["web"]["p08/report.dcm"] == found["disk"]["p08/report.dcm"]
    read = {name: json.loads(files["p08/result.json"]) for name, files in found.items()}
    assert without_times(read["web"]) == without_times(read["disk"])


def test_an_audit_of_a_scan_at_an_address_is_that_of_a_disk(
    web: str,
    scans: Path,
    tiny: str,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chestct.studies.model_audit.CHANGES", {})
    work_here(monkeypatch)

    def audit(name: str, place: str, *more: str, query: str = "") -> int:
        # The lungs stand in for lesions.
        asked = [f"{place}/s0.nii.gz{query}", "--lesions", f"{place}/lungs.nii.gz{query}"]
        return main(["audit-model", *asked, *how(tiny), "--out", str(tmp_path / name), *more])

    assert audit("disk", str(scans)) == 0
    assert audit("web", web, query=f"?sig={SECRET}") == 0
    assert audit("workers", web, "--workers", "1") == 0
    first, *others = (tmp_path / name / JSON_FILE for name in ("disk", "web", "workers"))
    assert json.loads(first.read_text())["scans"][0]["lesion_source"] == "given lesions"
    assert all(other.read_bytes() == first.read_bytes() for other in others)
    assert audit("none", web, "--workers", "1", query=f"?sig={SECRET}") == 2
    printed = capsys.readouterr()
    assert "with a password, or with a query" in printed.err
    assert SECRET not in printed.out + printed.err


def test_a_batch_at_an_address_has_the_tables_of_the_one_on_a_disk(
    web: str, scans: Path, tiny: str, tmp_path: Path
) -> None:
    def classify(name: str, place: str) -> int:
        command = ["classify", "--manifest", f"{place}/scans.csv", "--out", str(tmp_path / name)]
        return main([*command, *how(tiny), "--workers", "1", "--write", "json"])

    assert classify("web", web) == 1
    with pytest.MonkeyPatch.context() as patch:
        work_here(patch)
        assert classify("disk", str(scans)) == 1
    disk, elsewhere = (tmp_path / name for name in ("disk", "web"))
    assert (elsewhere / "p07" / "result.json").is_file()
    found = {}
    for folder in (disk, elsewhere):
        with (folder / "answers.csv").open(newline="") as stream:
            found[folder] = list(csv.DictReader(stream))
    assert found[elsewhere][:3] == found[disk][:3]
    assert all(row["decision"] for row in found[disk][:3])
    (gone,) = csv.DictReader((elsewhere / "failures.csv").read_text().splitlines())
    assert gone["path"] == "gone.nii.gz"
    assert f"{web}/gone.nii.gz is not there. Correct the address" in gone["reason"]


def test_rows_may_name_addresses_and_none_with_a_secret(
    web: str, tiny: str, tmp_path: Path, capsys: Output, here: None
) -> None:
    table = tmp_path / "scans.csv"
    table.write_text(f"scan\n{web}/s0.nii.gz\n{web}/s1.nii.gz?sig={SECRET}\n")
    out = tmp_path / "out"
    command = ["classify", "--manifest", str(table), "--out", str(out), "--workers", "1"]
    assert main([*command, *how(tiny)]) == 1
    rows = list(csv.DictReader((out / "answers.csv").read_text().splitlines()))
    assert [row["path"] for row in rows] == [f"{web}/s0.nii.gz", f"{web}/s1.nii.gz"]
    assert rows[0]["decision"]
    assert "with a password, or with a query" in (out / "failures.csv").read_text()
    kept = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert SECRET.encode() not in kept
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    assert main(["classify", f"{web}/s0.nii.gz?{SECRET}", "--workers", "1", "--out", "x"]) == 2
    assert SECRET not in capsys.readouterr().err


def test_scans_at_an_address_are_prepared_once(
    web: str, tmp_path: Path, copies: Path, capsys: Output, here: None
) -> None:
    command = ["dataset", "prepare", f"{web}/labelled.csv", "--recipe", "roi_resnet_published"]
    command += ["--cache", str(tmp_path / "inputs"), "--workers", "1"]
    assert main(command) == 0
    assert "2 prepared, 0 were there" in capsys.readouterr().out
    shutil.rmtree(copies)
    assert main(command) == 0
    assert "0 prepared, 2 were there" in capsys.readouterr().out
    assert len(list(copies.glob("*/*.nii.gz"))) == 0, "what is prepared is not copied again"


def test_a_training_set_at_an_address_gives_the_inputs_of_one_on_a_disk(
    memory: str, scans: Path, tmp_path: Path
) -> None:
    recipe = find_recipe("roi_resnet_published")
    inputs = {}
    for name, place in {"disk": str(scans), "memory": memory}.items():
        manifest = read_manifest(f"{place}/labelled.csv")
        items = LabelledScans(Cache(tmp_path / name, recipe), manifest)
        inputs[name] = [items[index] for index in range(len(items))]
        assert sha256_of(Path(f"{place}/labelled.csv")) == file_sha256(scans / "labelled.csv")
    for ours, theirs in zip(inputs["memory"], inputs["disk"], strict=True):
        assert ours[0].equal(theirs[0])
        assert ours[2] == theirs[2]


def test_prepared_inputs_may_be_kept_at_an_address(
    memory: str, tmp_path: Path, copies: Path, capsys: Output, here: None
) -> None:
    def prepare(cache: str) -> str:
        command = ["dataset", "prepare", f"{memory}/labelled.csv", "--workers", "1"]
        assert main([*command, "--recipe", "roi_resnet_published", "--cache", cache]) == 0
        return capsys.readouterr().out

    def inputs(cache: str) -> list[bytes]:
        return [path.read_bytes() for path in sorted(Path(cache).rglob("*.safetensors"))]

    prepare(str(tmp_path / "disk"))
    assert "2 prepared, 0 were there" in prepare("memory://kept/inputs")
    stored = fsspec.filesystem("memory").find("/kept/inputs")
    assert sum(name.endswith(".safetensors") for name in stored) == 2
    # Another machine has nothing yet, and asks the storage instead of the scans.
    mirrors = copies.with_name("mirrors")
    shutil.rmtree(mirrors)
    shutil.rmtree(copies)
    assert "0 prepared, 2 were there" in prepare("memory://kept/inputs")
    assert not list(copies.glob("*/*.nii.gz"))
    assert len(inputs(str(tmp_path / "disk"))) == 2
    assert inputs(str(mirrors)) == inputs(str(tmp_path / "disk"))


def test_an_entry_damaged_at_an_address_is_made_again_there(memory: str, tmp_path: Path) -> None:
    scan, recipe = Path(f"{memory}/s0.nii.gz"), find_recipe("roi_resnet_published")
    cache = Cache(Path("memory://kept"), recipe)
    cache.get(scan)
    system = fsspec.filesystem("memory")
    (entry,) = (name for name in system.find("/kept") if name.endswith(".safetensors"))
    sound = system.cat_file(entry)
    system.pipe_file(entry, sound[:-5])
    shutil.rmtree(tmp_path / "cache")
    assert not cache.fetch(scan)[1]
    assert system.cat_file(entry) == sound


def test_what_was_prepared_on_a_disk_is_found_where_it_is_served_and_nothing_is_added_there(
    web: str, scans: Path, copies: Path
) -> None:
    recipe = find_recipe("roi_resnet_published")
    first, second = (Path(f"{web}/s{number}.nii.gz") for number in range(2))
    prepared = Cache(scans.parent / "inputs", recipe).get(first)
    cache = Cache(Path(f"{web}/../inputs"), recipe)
    found, was_there = cache.fetch(first)
    assert was_there
    assert np.array_equal(found.input, prepared.input)
    assert [cache.fetch(second)[1] for _ in range(2)] == [False, True]
    assert len(list((scans.parent / "inputs").rglob("*.safetensors"))) == 1
    assert len(list(copies.with_name("mirrors").rglob("*.safetensors"))) == 2


def test_what_a_storage_does_not_take_is_not_kept_as_if_it_had(
    memory: str, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no")

    cache = Cache(Path("memory://kept"), find_recipe("roi_resnet_published"))
    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("memory")), "put_file", refuse)
        with pytest.raises(CacheError, match=r"^memory://kept/.* may not be written: its storage"):
            cache.get(Path(f"{memory}/s0.nii.gz"))
    assert not list(copies.with_name("mirrors").rglob("*.safetensors"))


def test_a_cache_with_a_password_is_refused_and_the_password_not_shown(
    web: str, capsys: Output
) -> None:
    command = ["dataset", "prepare", f"{web}/labelled.csv", "--recipe", "roi_resnet_published"]
    assert main([*command, "--cache", f"https://me:{SECRET}@host/inputs"]) == 2
    said = capsys.readouterr().err
    assert "data.cache: https://host/inputs is named with a password" in said
    assert SECRET not in said


def test_a_manifest_of_addresses_is_written_as_it_was_read(memory: str, tmp_path: Path) -> None:
    manifest = read_manifest(f"{memory}/labelled.csv")
    written = write_manifest(manifest, tmp_path / "copy.csv")
    rows = read_manifest(written).rows
    assert [row.scan for row in rows] == [f"{memory}/s{number}.nii.gz" for number in range(2)]
    assert written.read_text().count("memory://lists/") == 2


def test_a_manifest_at_an_address_is_not_written_to(web: str, capsys: Output) -> None:
    command = ["dataset", "split", f"{web}/labelled.csv", "--folds", "2"]
    assert main(command) == 2
    assert "is not written to. Name a file: --out FILE" in capsys.readouterr().err


def test_a_mask_of_lungs_may_lie_at_an_address(memory: str, scans: Path) -> None:
    volume = read_volume(f"{memory}/s0.nii.gz")
    mask = read_lungs(Path(f"{memory}/lungs.nii.gz"), volume)
    assert np.array_equal(mask.voxels, read_lungs(scans / "lungs.nii.gz", volume).voxels)


def test_scans_at_an_address_are_exported(memory: str, tmp_path: Path) -> None:
    manifest = read_manifest(f"{memory}/labelled.csv")
    result = export_scans(manifest, tmp_path / "out", ExportSettings("nifti"), processes=1)
    assert (result.num_made, result.failed) == (2, {})
    volumes = [read_volume(path) for path in (tmp_path / "out").rglob("*.nii.gz")]
    assert {volume.grid.shape for volume in volumes} == {
        read_volume(f"{memory}/s0.nii.gz").grid.shape
    }


def test_a_table_that_is_not_there_is_said(memory: str) -> None:
    with pytest.raises(ReadError, match=r"^memory://lists/gone\.csv is not there\."):
        read_manifest(f"{memory}/gone.csv")
