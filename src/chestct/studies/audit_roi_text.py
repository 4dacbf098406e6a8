"""The part of the audit report on the RoI-aware 3D ResNet paper."""

from __future__ import annotations

from functools import partial

from chestct.labels import THREE_CLASSES
from chestct.studies import audit_pictures
from chestct.studies.audit_document import (
    Picture,
    Points,
    Section,
    Table,
    counted,
    interval,
    listed,
    p_words,
    percent,
    with_interval,
)
from chestct.studies.audit_roi import AGREES, FIGURES, HEADLINE_ROW, RoiAudit, RowAudit
from chestct.studies.audit_scores import Scores, rounded


def _headline_section(audit: RoiAudit) -> Section:
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


def _table_8_section(audit: RoiAudit) -> Section:
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


def _table_6_section(audit: RoiAudit) -> Section:
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


def _thresholds_section(audit: RoiAudit) -> Section:
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


_NAMES = ("No", "Network", "RoI", "t %")


def roi_sections(audit: RoiAudit) -> tuple[Section, ...]:
    """Everything on this paper, its main points first."""
    return (
        Section("The RoI-aware 3D ResNet paper", (audit.citation + ".", _points(audit)), level=2),
        _table_7(audit),
        _recalls(audit),
        _spe(audit),
        _labels(audit),
        _vectors(audit),
        _headline_section(audit),
        _table_8_section(audit),
        _table_6_section(audit),
        _thresholds_section(audit),
    )


def _points(audit: RoiAudit) -> Points:
    row = audit.row(HEADLINE_ROW)
    best = max(each.official.accuracy.hits or 0 for each in audit.rows)
    sharing = tuple(
        each.published.row for each in audit.rows if each.official.accuracy.hits == best
    )
    changed = {each.row for each in audit.deviations}
    abstract = [
        each for each in audit.headline if each.place == "abstract" and "SEN" in each.figure
    ]
    num_rows = len({cell for each in abstract for cell in each.cells})
    return Points(
        (
            f"The printed {row.published.accuracy:.1f} % of row {HEADLINE_ROW} is "
            f"{counted(row.workbook.accuracy)} with the labels inside its workbook. With those "
            f"of the label files the same predictions give {counted(row.official.accuracy)} = "
            f"{percent(row.official.accuracy)} % (Wilson 95 % interval "
            f"{interval(row.official.accuracy)}), kappa {row.official.kappa or 0:.3f}. Rows "
            f"{listed(sharing)} share this accuracy, which is the highest.",
            f"The columns headed SPE hold the positive predictive value: {audit.spe.ppv_either} of "
            f"{audit.spe.num_figures} figures equal it to the printed digit under one of the two "
            f"label sets, {audit.spe.specificity_official + audit.spe.specificity_workbook} equal "
            "the specificity of Eq. 14.",
            "Accuracy is the trace of the confusion matrix over all cases, not the two-class "
            "formula of Eq. 12.",
            f"{len(audit.deviations)} labels in {len(changed)} of the {len(audit.rows)} sheets "
            "differ from the label files, in "
            f"{len({each.study for each in audit.deviations})} studies.",
            f"The {len(audit.rows)} sheets hold {len(audit.groups)} distinct vectors of "
            "predictions: plain and RoI-aware ResNet-50 and ResNet-101 have the same file for "
            "every t. The files therefore say nothing for or against the RoI layer in these two "
            "networks.",
            f"The sensitivities in the abstract stand in {num_rows} different rows of Table 7; one "
            f"network with all three would be right in {audit.hits_if_one_model} of 130 studies.",
        )
    )


def _table_7(audit: RoiAudit) -> Section:
    rows = tuple(
        (
            *_name(row),
            f"{row.published.accuracy:.1f}",
            percent(row.official.accuracy),
            counted(row.official.accuracy),
            interval(row.official.accuracy),
            percent(row.workbook.accuracy),
            str(row.num_changed),
            row.verdict,
        )
        for row in audit.rows
    )
    columns = (
        "AC printed",
        "AC",
        "Hits",
        "Wilson 95 %",
        "AC, workbook",
        "Labels changed",
        "Verdict",
    )
    return Section(
        "Table 7, row by row",
        (
            "Each row is recomputed from its own prediction file. AC and hits are those with the "
            "label files; beside them stands the accuracy with the labels inside the workbook.",
            Table("Accuracy in per cent", (*_NAMES, *columns), rows, _marked(audit)),
            Picture(
                "roi_accuracy",
                "Accuracy as printed and as recomputed with the label files, with Wilson's 95 % "
                "interval.",
                "Dot plot of 18 rows: printed and recomputed accuracy with intervals about 13 "
                "points wide; they differ in rows "
                f"{listed(_differing_accuracy(audit))}.",
                partial(audit_pictures.draw_accuracies, audit),
            ),
        ),
    )


def _recalls(audit: RoiAudit) -> Section:
    rows = []
    for row in audit.rows:
        cells = [
            cell
            for printed, label in zip(row.published.sensitivity, THREE_CLASSES, strict=True)
            for cell in (f"{printed:.1f}", with_interval(row.official.classes[label].sensitivity))
        ]
        rows.append((*_name(row), *cells))
    columns = [
        name for label in THREE_CLASSES for name in (f"{label} printed", f"{label} recomputed")
    ]
    return Section(
        "Sensitivity of each class",
        (Table("Per cent, label files", (*_NAMES, *columns), tuple(rows), _marked(audit)),),
    )


def _spe(audit: RoiAudit) -> Section:
    rows = []
    for row in audit.rows:
        cells = []
        for printed, label in zip(row.published.spe, THREE_CLASSES, strict=True):
            scores = row.official.classes[label]
            cells += [f"{printed:.1f}", percent(scores.ppv), with_interval(scores.specificity)]
        rows.append((*_name(row), *cells))
    columns = [
        name
        for label in THREE_CLASSES
        for name in (f"{label} SPE printed", f"{label} PPV", f"{label} specificity")
    ]
    fits = audit.spe
    return Section(
        "What the SPE columns hold",
        (
            f"Of {fits.num_figures} printed figures {fits.ppv_official} equal the positive "
            f"predictive value with the label files, {fits.ppv_workbook} with the workbook's "
            f"labels, {fits.ppv_either} with one of them; "
            f"{fits.specificity_official} and {fits.specificity_workbook} equal the specificity. "
            f"Those that fit neither stand in rows {listed(_rows_without_fit(audit))}.",
            Table("Per cent, label files", (*_NAMES, *columns), tuple(rows)),
            Picture(
                "roi_spe",
                "Printed SPE against the recomputed positive predictive value and the specificity; "
                "on the line they are equal.",
                "Scatter plot: positive predictive values lie on the line of equality or close to "
                "it, specificities well above it.",
                partial(audit_pictures.draw_spe, audit),
            ),
            _one_row_in_full(audit.row(HEADLINE_ROW)),
        ),
    )


def _rows_without_fit(audit: RoiAudit) -> tuple[int, ...]:
    """Rows with an SPE figure that no label set gives as positive predictive value."""
    spe = {name for name in FIGURES if name.endswith("SPE")}
    return tuple(
        row.published.row
        for row in audit.rows
        if not spe <= {*row.equal_official, *row.equal_workbook}
    )


def _one_row_in_full(row: RowAudit) -> Table:
    rows = tuple(
        (
            name,
            label,
            with_interval(each.sensitivity),
            with_interval(each.specificity),
            with_interval(each.ppv),
            with_interval(each.npv),
            percent(each.one_vs_rest_accuracy),
        )
        for name, scores in (("label files", row.official), ("workbook", row.workbook))
        for label, each in scores.classes.items()
    )
    columns = ("Labels", "Class", "Sensitivity", "Specificity", "PPV", "NPV", "Accuracy by Eq. 12")
    return Table(
        f"Row {row.published.row} in full: per cent with Wilson's 95 % interval", columns, rows
    )


def _labels(audit: RoiAudit) -> Section:
    rows = tuple(
        (
            str(each.row),
            each.study,
            str(each.workbook_row),
            each.official,
            each.workbook,
            each.predicted,
            each.effect,
        )
        for each in audit.deviations
    )
    num_equal = sum(row.num_changed == 0 for row in audit.rows)
    columns = ("Row", "Study", "Line", "Label file", "Workbook", "Predicted", "Effect")
    return Section(
        "Labels that differ",
        (
            "The label files are taken as the truth: they are the only separate source of labels "
            f"in the repository, {num_equal} sheets agree with them in all 130 studies, and the "
            f"other {len(audit.rows) - num_equal} differ from them in different studies. The "
            "organisers' own labels were not at hand.",
            Table("Workbook against label file", columns, rows),
        ),
    )


def _vectors(audit: RoiAudit) -> Section:
    shared = [group for group in audit.groups if len(group) > 1]
    rows = tuple(
        (
            pair.network,
            str(pair.t),
            f"{pair.rows[0]}, {pair.rows[1]}",
            str(pair.num_different),
            f"{rounded(pair.points) + 0.0:+.1f}" if pair.num_different else "same file",
            p_words(pair.p_value, 2),
        )
        for pair in audit.pairs
    )
    columns = ("Network", "t %", "Rows", "Studies that differ", "RoI minus plain, points", "p")
    return Section(
        f"{len(audit.groups)} vectors of predictions in {len(audit.rows)} sheets",
        (
            "The same predictions in all 130 studies: rows "
            + "; ".join(listed(group) for group in shared)
            + ". Where Table 7 prints different figures for such a pair, they come from the labels "
            "inside the workbooks or fit no sheet.",
            Table("Plain against RoI-aware; p by McNemar's exact test", columns, rows),
            Picture(
                "roi_vectors",
                "Studies, of 130, on which two rows of Table 7 predict different classes; 0 is "
                "the same vector.",
                "Triangle of 153 counts; the six zeros are rows "
                + "; ".join(listed(group) for group in shared)
                + ".",
                partial(audit_pictures.draw_vectors, audit),
            ),
        ),
    )


def _name(row: RowAudit) -> tuple[str, str, str, str]:
    published = row.published
    network = published.network.replace("ResNet-", "R")
    return str(published.row), network, "yes" if published.roi else "no", str(published.t)


def _marked(audit: RoiAudit) -> frozenset[int]:
    return frozenset(i for i, row in enumerate(audit.rows) if row.verdict != AGREES)


def _differing_accuracy(audit: RoiAudit) -> tuple[int, ...]:
    return tuple(row.published.row for row in audit.rows if FIGURES[0] not in row.equal_official)
