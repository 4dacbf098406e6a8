"""The audit's figures equal those of the reference, which was made by other scripts."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from chestct import __version__
from chestct.cli import main
from chestct.errors import WriteError
from chestct.evaluation.metrics import Estimate
from chestct.report import Points, Table, as_markdown, as_page
from chestct.studies.audit import (
    _AGREES,
    _COLORS,
    _COMMAND,
    Audit,
    _as_json,
    _listed,
    audit_papers,
    report_of,
    write_audit,
)
from chestct.studies.published import Scores, counts_behind, percent_of, roi_facts

EXPECTED = json.loads(Path(__file__).with_name("papers_expected.json").read_text(encoding="utf-8"))
REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden")
PAGE_SHA256 = "0c390122f47083d9d734165532bece0041a1bfda8d5b69690c11eb03f0c652d4"
CONFUSION = "confusion_rows_true_cols_pred_order_cap_covid_normal"


@pytest.fixture(scope="module")
def audit() -> Audit:
    return audit_papers()


@pytest.fixture(scope="module")
def written(audit: Audit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reports as the command writes them."""
    folder = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chestct.studies.audit.audit_papers", lambda: audit)
        assert main(["study", "audit-papers", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def page_text(written: Path) -> str:
    return (written / "audit.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reference(data_folder: Path) -> Path:
    folder = data_folder.parent / "reference"
    if not (folder / "spgc_recomputed.json").is_file():
        pytest.skip("no audit beside the real scans: put it at ../shared/reference")
    return folder


def ends(estimate: Estimate) -> list[float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return [round(100 * estimate.low, 2), round(100 * estimate.high, 2)]


def as_reference(scores: Scores) -> dict[str, Any]:
    """Scores as the reference writes them."""
    found: dict[str, Any] = {
        CONFUSION: [list(row) for row in scores.confusion],
        "accuracy_pct": percent_of(scores.accuracy, 2),
        "correct": scores.accuracy.hits,
        "kappa": round(scores.kappa or 0, 4),
        "accuracy_wilson95_pct": ends(scores.accuracy),
        "macro_f1": round(scores.macro_f1 or 0, 4),
    }
    for label, each in scores.classes.items():
        counts = each.counts
        found[label.lower()] = {
            "tp": counts.tp,
            "fn": counts.fn,
            "fp": counts.fp,
            "tn": counts.tn,
            "sensitivity_pct": percent_of(each.sensitivity, 2),
            "specificity_pct": percent_of(each.specificity, 2),
            "ppv_pct": percent_of(each.ppv, 2),
            "npv_pct": percent_of(each.npv, 2),
            "f1": round(each.f1 or 0, 4),
            "one_vs_rest_accuracy_eq12_pct": percent_of(each.one_vs_rest_accuracy, 2),
            "wilson95_pct": {
                "sensitivity": ends(each.sensitivity),
                "specificity": ends(each.specificity),
                "ppv": ends(each.ppv),
            },
        }
    return found


def recomputed_rows(audit: Audit) -> dict[str, Any]:
    return {
        str(row.published.row): {
            "model": row.published.network.replace("-", "").lower(),
            "roi_aware": int(row.published.roi),
            "t": row.published.t,
            "labels_deviating_in_workbook": row.num_changed,
            "with_official_labels": as_reference(row.official),
            "with_sheet_labels": as_reference(row.workbook),
            "tests_1_to_3_only_official": {
                "n": row.first_three.accuracy.total,
                "correct": row.first_three.accuracy.hits,
                "accuracy_pct": percent_of(row.first_three.accuracy, 2),
                "sensitivity_pct": {
                    label.lower(): percent_of(each.sensitivity, 2)
                    for label, each in row.first_three.classes.items()
                },
            },
            "published_table7_pct": dict(
                zip(
                    ("AC", "CAP_SEN", "COVID_SEN", "Normal_SEN", "CAP_SPE", "COVID_SPE",
                     "Normal_SPE"),
                    row.published.figures,
                    strict=True,
                )
            ),
        }
        for row in audit.roi_aware.rows
    }  # fmt: skip


def test_every_figure_of_every_row_equals_the_packaged_expectation(audit: Audit) -> None:
    assert recomputed_rows(audit) == EXPECTED["rows"]


def test_every_figure_of_every_row_equals_the_reference_itself(
    audit: Audit, reference: Path
) -> None:
    expected = json.loads((reference / "spgc_recomputed.json").read_text(encoding="utf-8"))
    assert recomputed_rows(audit) == expected["rows"]


def test_the_packaged_predictions_are_those_of_the_reference(reference: Path) -> None:
    facts = roi_facts()
    rows = {
        (f"resnet{row.network.removeprefix('ResNet-')}", str(int(row.roi)), str(row.t)): row.row
        for row in facts.table_7
    }
    lines = (reference / "spgc_predictions.csv").read_text(encoding="utf-8-sig").splitlines()[1:]
    assert len(lines) == 18 * 130
    for line in lines:
        study, true, *key, predicted = line.split(",")
        place = facts.studies.index(study)
        assert facts.official[place].lower() == true
        row = rows[key[0], key[1], key[2]]
        assert facts.predicted[row][place].lower() == predicted


def test_the_rows_that_agree_are_those_that_the_reference_names(audit: Audit) -> None:
    rows = audit.roi_aware.rows
    accuracy = {row.published.row for row in rows if "AC" in row.equal_official}
    workbook = {row.published.row for row in rows if "AC" in row.equal_workbook}
    agree = {row.published.row for row in rows if row.verdict == _AGREES}
    only = {row.published.row for row in rows if row.verdict.endswith("workbook's labels only")}
    assert accuracy == {2, 3, 4, 5, 6, 10, 11, 12, 14, 16, 17}
    assert workbook == set(range(2, 19))
    assert agree == {2, 3, 4, 5, 6, 10, 11, 12, 14, 17}
    assert only == {7, 8, 9}
    assert "Table 6, row 1" in audit.roi_aware.row(1).verdict
    assert "47/51 = 92.2" in audit.roi_aware.row(16).verdict


def test_the_printed_class_figures_of_row_18_fit_other_counts_than_its_files(audit: Audit) -> None:
    assert audit.roi_aware.row(18).implied == ((24, 30), (44, 48), (49, 52))
    assert audit.roi_aware.row(15).implied == ((23, 29), (45, 50), None)


def test_the_labels_that_differ_are_those_of_the_reference(audit: Audit) -> None:
    effects = {
        "counted_wrong_though_right": "hit counted as error",
        "counted_right_though_wrong": "error counted as hit",
    }
    found = [
        [each["row"], each["study"], each["workbook_row"], each["official"].lower(),
         each["workbook"].lower(), each["predicted"].lower(), each["effect"]]
        for each in audit.roi_aware.deviations
    ]  # fmt: skip
    assert found == [[*each[:-1], effects[each[-1]]] for each in EXPECTED["deviations"]]


def test_eighteen_sheets_hold_twelve_vectors_and_the_pairs_differ_as_the_reference_says(
    audit: Audit,
) -> None:
    shared = [group for group in audit.roi_aware.groups if len(group) > 1]
    assert len(audit.roi_aware.groups) == 12
    assert shared == [(7, 10), (8, 11), (9, 12), (13, 16), (14, 17), (15, 18)]
    pairs = {(pair["network"], pair["t"]): pair for pair in audit.roi_aware.pairs}
    found = [
        (round(pairs["ResNet-18", t]["points"], 1), round(pairs["ResNet-18", t]["p_value"], 2))
        for t in (60, 70, 80)
    ]
    assert found == [(0.0, 1.0), (1.5, 0.82), (-0.8, 1.0)]
    assert all(pair["p_value"] is None for key, pair in pairs.items() if key[0] != "ResNet-18")


def test_no_printed_spe_equals_a_specificity(audit: Audit) -> None:
    spe = audit.roi_aware.spe
    names = ("num_figures", "specificity_official", "specificity_workbook")
    assert [spe[name] for name in names] == [54, 0, 0]
    assert spe["ppv_either"] >= max(spe["ppv_official"], spe["ppv_workbook"]) > 39


def test_the_headline_mixes_rows_as_the_reference_says(audit: Audit) -> None:
    cells = {(each["place"], each["figure"]): each for each in audit.roi_aware.headline}
    assert cells["abstract", "COVID-19 SEN"]["cells"] == ("row 15 SEN",)
    assert cells["abstract", "CAP SEN"]["cells"] == ("row 6 SEN",)
    assert cells["abstract", "normal SEN"]["cells"] == ("row 18 SEN",)
    assert cells["Table 8", "normal SEN"]["cells"] == ("row 6 SPE",)
    assert cells["Table 8", "normal SEN"]["possible_hits"] == ()
    assert audit.roi_aware.hits_if_one_model == 121


def test_table_8_is_on_90_cases(audit: Audit) -> None:
    own, *others = audit.roi_aware.methods
    assert [each["hits_of_90"] for each in others] == [(81,), (80,), (78,), (77,), (73,), (72,)]
    assert [sum(each["class_hits"]) for each in others] == [81, 80, 78, 77, 73, 72]
    assert own["hits_of_130"] == (117,)


def test_table_6_implies_the_cases_that_the_reference_counts(audit: Audit) -> None:
    found = [
        [each.row, each.accuracy, each.errors, each.false_positives, list(each.class_hits),
         each.hits, each.predicted]
        for each in audit.roi_aware.cross_validation
    ]  # fmt: skip
    assert found == EXPECTED["table_6"]


def test_the_means_by_threshold_are_those_of_the_reference(audit: Audit) -> None:
    found = {
        t: tuple(round(mean, 1) for mean in means)
        for t, means in audit.roi_aware.mean_accuracy.items()
    }
    assert found == {60: (77.2, 83.8, 85.1), 70: (82.1, 83.3, 83.6), 80: (88.2, 85.2, 85.0)}


def test_printed_percentages_are_rounded_half_up() -> None:
    estimate = Scores.of(["CAP"] * 48, ["CAP"] * 27 + ["normal"] * 21).accuracy
    assert percent_of(estimate) == 56.3
    assert counts_behind(97.1, 51) == ()
    assert counts_behind(96.1, 51) == (49,)


def test_the_reports_hold_every_section_table_and_figure(audit: Audit, page_text: str) -> None:
    report = report_of(audit)
    text = as_markdown(*report.sections)
    assert f"# {report.sections[0].title}\n" in text
    for section in report.sections[1:]:
        assert f'id="{section.anchor}"' in page_text
        assert f"# {section.title}" in text
    for picture in report.pictures:
        assert f"(figures/{picture.name}.png)" in text
    assert len(report.pictures) == 6
    assert len({section.anchor for section in report.sections}) == len(report.sections)
    tables = [b for s in report.sections for b in s.blocks if isinstance(b, Table)]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    points = [b for s in report.sections for b in s.blocks if isinstance(b, Points)]
    assert "115/130 = 88.5 % (Wilson 95 % interval 81.8–92.9)" in points[0].items[0]


class Page(HTMLParser):
    """What a page refers to, and the pictures in it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        names = ("href", "src", "xlink:href", "srcset", "action")
        self.addresses += [value for name, value in attrs if name in names and value]
        if tag in ("svg", "img"):
            self.pictures.append(known)


def test_the_page_loads_nothing_and_every_picture_has_words(page_text: str) -> None:
    page = Page()
    page.feed(page_text)
    assert {address[0] for address in page.addresses} == {"#"}
    assert not page.tags & {"script", "link", "iframe", "img", "object"}
    assert "@import" not in page_text
    assert not re.search(r"url\((?!#)", page_text)
    assert len(page.pictures) == 6
    assert all(each["role"] == "img" and each["aria-label"] for each in page.pictures)
    assert len(page.ids) == len(set(page.ids))
    targets = {address[1:] for address in page.addresses}
    assert targets <= set(page.ids)


def test_the_page_has_colours_for_dark_and_none_of_the_drawn_ones(page_text: str) -> None:
    assert "prefers-color-scheme: dark" in page_text
    drawn = "".join(re.findall(r"<svg.*?</svg>", page_text, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", drawn)
    assert "var(--orange)" in drawn


def test_the_same_audit_gives_the_same_bytes(audit: Audit, page_text: str) -> None:
    assert as_page(report_of(audit), _COLORS, _COMMAND) == page_text


def test_json_holds_every_figure_as_a_finite_number(audit: Audit) -> None:
    found = json.loads(_as_json(audit))
    assert found["schema"] == "chestct.audit"
    row = found["roi_aware"]["rows"][17]
    assert row["official"]["accuracy"]["hits"] == 115
    assert row["official"]["classes"]["CAP"]["specificity"]["total"] == 102
    assert found["maseres"]["tests"][0]["mcnemar"]["p_value"] == 0.25


def test_the_command_writes_three_reports_and_their_figures(written: Path) -> None:
    names = {path.name for path in written.iterdir()}
    assert names == {"audit.html", "audit.md", "audit.json", "figures"}
    pictures = list((written / "figures").iterdir())
    assert len(pictures) == 6
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_what_the_command_says_stays_word_for_word(
    monkeypatch: pytest.MonkeyPatch, audit: Audit, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("chestct.studies.audit.audit_papers", lambda: audit)
    assert main(["study", "audit-papers"]) == 0
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    expected = (GOLDEN / "audit_papers.txt").read_text(encoding="utf-8").splitlines()
    assert shown == [line.rstrip() for line in expected]


def test_the_markdown_file_stays_word_for_word(written: Path) -> None:
    found = (written / "audit.md").read_text(encoding="utf-8")
    assert found == (GOLDEN / "audit_papers.md").read_text(encoding="utf-8")


def test_the_page_stays_as_it_was_but_for_its_drawings(page_text: str) -> None:
    plain = re.sub(r"<svg.*?</svg>", "<svg/>", page_text, flags=re.DOTALL)
    plain = plain.replace(f"chestct {__version__}", "chestct VERSION")
    assert hashlib.sha256(plain.encode()).hexdigest() == PAGE_SHA256


def test_without_a_folder_the_command_shows_the_rows_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "audit-papers"]) == 0
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("115/130", "21/21", "McNemar"))
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_both_papers_says_what_the_audit_says(
    audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    papers_page = import_module("papers_page")
    monkeypatch.setattr(papers_page, "audit_papers", lambda: audit)
    page = papers_page.PAGE.read_text(encoding="utf-8")
    assert len(papers_page.MARKED.findall(page)) == 4
    assert papers_page.with_audit(page) == page, "run: python scripts/papers_page.py"


def test_a_file_in_the_way_is_an_error_that_names_it(tmp_path: Path, audit: Audit) -> None:
    (tmp_path / "audit").write_text("in the way")
    with pytest.raises(WriteError, match="audit is a file"):
        write_audit(audit, tmp_path / "audit")


def test_lists_of_numbers_are_read_as_words() -> None:
    assert [_listed(()), _listed((7,)), _listed((7, 10)), _listed((1, 2, 3))] == [
        "", "7", "7 and 10", "1, 2 and 3",
    ]  # fmt: skip
