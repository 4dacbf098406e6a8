"""The audit report on the RoI-aware paper's headline, its Tables 6 and 8, and the threshold t."""

from __future__ import annotations

from functools import partial

from chestct.labels import THREE_CLASSES
from chestct.studies import audit_pictures
from chestct.studies.audit_document import Picture, Section, Table, counted, percent, with_interval
from chestct.studies.audit_roi import HEADLINE_ROW, RoiAudit
from chestct.studies.audit_scores import Scores, rounded


def headline_section(audit: RoiAudit) -> Section:
    """Where the figures of the abstract stand."""
    rows = tuple(
        (
            each.place,
            each.figure,
            f"{each.percent:.1f}",
            ", ".join(each.cells) or "nowhere",
            ", ".join(f"{hits}/{each.total}" for hits in each.possible_hits)
            or "no number of cases",
        )
        for each in audit.headline
    )
    implied = audit.row(HEADLINE_ROW).implied
    fitting = ", ".join(
        f"{label} {cell[0]} hits of {cell[1]} decisions" if cell else f"{label} none"
        for label, cell in zip(THREE_CLASSES, implied, strict=True)
    )
    columns = ("Place", "Figure", "Printed", "In Table 7", "Cases")
    return Section(
        "The headline",
        (
            Table("Where the figures of the abstract and of Table 8 stand", columns, rows),
            f"The class figures printed in row {HEADLINE_ROW} fit {fitting}; its files hold "
            f"{_hits_and_decisions(audit.row(HEADLINE_ROW).official)} with the label files and "
            f"{_hits_and_decisions(audit.row(HEADLINE_ROW).workbook)} with the workbook's labels.",
        ),
    )


def table_8_section(audit: RoiAudit) -> Section:
    """On how many cases each method was judged."""
    rows = tuple(
        (
            each.name,
            f"{each.accuracy:.1f}",
            _fractions(each.hits_of_90, 90),
            _fractions(each.hits_of_130, 130),
            " + ".join(map(str, each.class_hits)) + f" = {sum(each.class_hits)}",
        )
        for each in audit.methods
    )
    ours = audit.row(HEADLINE_ROW).first_three
    recalls = ", ".join(f"{k} {percent(v.sensitivity)}" for k, v in ours.classes.items())
    columns = ("Method", "AC printed", "Of 90", "Of 130", "Hits from recalls, of 20, 35, 35")
    return Section(
        "Table 8 compares different test sets",
        (
            "The accuracies of the other six methods are fractions of 90 cases, those of test "
            "parts 1 to 3, and their recalls add up to the same hits. The paper's own is on 130. "
            f"On the 90 cases, with the label files, row {HEADLINE_ROW} scores "
            f"{counted(ours.accuracy)} = {with_interval(ours.accuracy)} % ({recalls}).",
            Table("Cases behind the printed figures", columns, rows),
        ),
    )


def table_6_section(audit: RoiAudit) -> Section:
    """What the cross-validation's figures imply."""
    checks = audit.cross_validation
    rows = tuple(
        (
            str(each.row),
            f"{each.accuracy:.1f}",
            str(each.errors),
            str(each.false_positives),
            f"{' + '.join(map(str, each.class_hits))} = {sum(each.class_hits)}",
            str(each.hits),
            str(each.predicted),
        )
        for each in checks
    )
    columns = (
        "No", "AC printed", "Errors", "False positives if specificity", "Hits from SEN",
        "Hits from AC", "Decisions if PPV",
    )  # fmt: skip
    num_impossible = sum(each.false_positives > each.errors for each in checks)
    num_exact = sum(each.predicted == 307 for each in checks)
    num_same = sum(sum(each.class_hits) == each.hits for each in checks)
    return Section(
        "Table 6, from within",
        (
            "For the cross-validation there are no prediction files. A wrong case is a false "
            "positive of exactly one class, so under Eq. 14 the false positives of a row add up to "
            f"its errors. They exceed them in {num_impossible} of {len(checks)} rows. Read as "
            f"positive predictive value, the decisions add up to 307 exactly in {num_exact} rows. "
            f"Hits from sensitivities and from the accuracy agree in {num_same} rows.",
            Table("Cases that the printed figures imply", columns, rows),
            Picture(
                "roi_table_6",
                "Errors of each row of Table 6, and the false positives its SPE figures would "
                "imply if they were specificities.",
                f"Bar chart of {len(checks)} rows: the implied false positives are at least "
                f"{min(each.false_positives / each.errors for each in checks):.1f} times the "
                "errors in every row.",
                partial(audit_pictures.draw_cross_validation, audit),
            ),
        ),
    )


def thresholds_section(audit: RoiAudit) -> Section:
    """Mean accuracy by t."""
    rows = tuple(
        (str(t), *(f"{rounded(mean, 2):.2f}" for mean in means))
        for t, means in audit.mean_accuracy.items()
    )
    return Section(
        "The threshold t",
        (
            "The text gives gains of about 5 and 7 points per step of t. They are those of the "
            "cross-validation; the test set does not show them. Every t has a random draw of "
            "resampling factors and crops of its own, test volumes included.",
            Table(
                "Mean accuracy of the six networks, per cent",
                ("t %", "Table 6", "Table 7 printed", "Table 7 recomputed"),
                rows,
            ),
        ),
    )


def _hits_and_decisions(scores: Scores) -> str:
    return ", ".join(counted(each.ppv) for each in scores.classes.values())


def _fractions(hits: tuple[int, ...], total: int) -> str:
    return ", ".join(f"{each}/{total}" for each in hits) or "none"
