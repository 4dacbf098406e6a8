"""The audit report on the MASERes paper's p-values and kappas."""

from __future__ import annotations

from functools import partial

from chestct.evaluation.comparisons import MASERES_Z_DEFECTS
from chestct.studies import audit_pictures
from chestct.studies.audit_document import Picture, Section, Table, p_words
from chestct.studies.audit_maseres import MaseresAudit
from chestct.studies.audit_maseres_tests import KappaAudit


def table_5_section(audit: MaseresAudit) -> Section:
    """The p-values, reproduced, with own denominators, and by other tests."""
    rows = tuple(
        (
            each.other,
            each.figure,
            f"{each.values[1]:.4f}",
            "0/0" if each.z is None else f"{each.z:.4f}",
            p_words(each.reproduced, 4),
            p_words(each.published),
            "not a proportion" if each.total is None else str(each.total),
            p_words(each.own_total),
        )
        for each in audit.p_values
    )
    tests = tuple(
        (
            each.other,
            f"{int(each.mcnemar.statistic or 0)}",
            p_words(each.mcnemar.p_value),
            p_words(each.fisher),
            p_words(each.z_pooled),
            p_words(each.z_two_sided),
        )
        for each in audit.tests
    )
    return Section(
        "Table 5: the p-values",
        (
            "z = (m1 − m2) / √(m1 (1 − m1) / 21 + m2 (1 − m2) / 21), p = 1 − Φ(z), and 0.5 where "
            "both are equal, reproduces the table; m1 is 1 throughout. Its reservations: "
            + "; ".join(MASERES_Z_DEFECTS)
            + ".",
            Table(
                "MASERes against another network, one-sided",
                ("Other", "Figure", "m2", "z", "p, n = 21", "p printed", "Own n", "p, own n"),
                rows,
            ),
            "The test for two classifiers on the same patients is McNemar's; it looks at the "
            "patients only one of them gets right. DeLong's test of the areas under the ROC curve "
            "needs the probabilities of the patients, which are not published.",
            Table(
                "Accuracy by other tests, two-sided p",
                ("Other", "Right by one only", "McNemar, exact", "Fisher", "z, pooled",
                 "z, unpooled"),
                tests,
            ),
            Picture(
                "maseres_p_values",
                "p-values of Table 5: as printed, the same test with each figure's own number of "
                "cases, and McNemar's exact test of the accuracy. The line is 0.05.",
                _p_values_alt(audit),
                partial(audit_pictures.draw_p_values, audit),
            ),
        ),
    )  # fmt: skip


def kappas_section(audit: MaseresAudit) -> Section:
    """The two kappas of the text."""
    return Section(
        "The kappas",
        (
            "MASERes is right on all 21 patients, so its kappa with another network is also that "
            "network's kappa with the truth. Whether a printed value is possible was tried on "
            "every 2 × 2 table of 20 and of 21 patients.",
            Table(
                "Cohen's kappa with MASERes",
                ("Other", "Printed", "Recomputed", "95 % interval", "Printed value is possible"),
                tuple(_kappa_row(each) for each in audit.kappas),
                frozenset(i for i, each in enumerate(audit.kappas) if not each.possible_with),
            ),
        ),
    )


def _kappa_row(each: KappaAudit) -> tuple[str, ...]:
    found = each.recomputed
    possible = ", ".join(f"with {n} patients" for n in each.possible_with)
    return (
        each.other,
        f"{each.published:.4f}",
        f"{found.estimate or 0:.4f}",
        "–" if found.low is None or found.high is None else f"{found.low:.2f} to {found.high:.2f}",
        possible or "no, neither with 20 nor with 21",
    )


def _p_values_alt(audit: MaseresAudit) -> str:
    printed = sum(each.published < 0.05 for each in audit.p_values)
    own = sum((each.own_total or 1.0) < 0.05 for each in audit.p_values)
    exact = sum((each.mcnemar.p_value or 1.0) < 0.05 for each in audit.tests)
    return (
        f"Dot plot: {printed} of the {len(audit.p_values)} printed p-values lie under 0.05, {own} "
        f"with each figure's own number of cases, {exact} by McNemar's test."
    )
