"""The part of the audit report on the MASERes paper."""

from __future__ import annotations

from functools import partial

from chestct.evaluation.comparisons import MASERES_Z_DEFECTS
from chestct.studies import audit_pictures
from chestct.studies.audit_document import (
    Picture,
    Points,
    Section,
    Table,
    counted,
    interval,
    p_words,
    percent,
    with_interval,
)
from chestct.studies.audit_maseres import KappaAudit, MaseresAudit, ModelAudit, NoErrors
from chestct.studies.audit_scores import rounded


def _table_5_section(audit: MaseresAudit) -> Section:
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


def _kappas_section(audit: MaseresAudit) -> Section:
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


def maseres_sections(audit: MaseresAudit) -> tuple[Section, ...]:
    """Everything on this paper, its main points first."""
    return (
        Section("The MASERes paper", (audit.citation + ".", _points(audit)), level=2),
        _patients(audit),
        _meaning(audit),
        _table_5_section(audit),
        _kappas_section(audit),
        _ctset(audit),
        _damaged(audit),
        _slices(audit),
        _split(audit),
    )


def _points(audit: MaseresAudit) -> Points:
    everyone = audit.no_errors[0]
    reproduced = sum(rounded(row.reproduced, 3) == row.published for row in audit.p_values)
    exact = ", ".join(f"{p_words(each.mcnemar.p_value, 2)} ({each.other})" for each in audit.tests)
    wrong = [each for each in audit.kappas if not each.possible_with]
    kappas = "; ".join(
        f"the printed kappa {each.published:.4f} with {each.other} is that of no 2 × 2 table of 20 "
        f"or 21 patients, the counts give {each.recomputed.estimate or 0:.4f}"
        for each in wrong
    )
    return Points(
        (
            f"100 % on the test set is {counted(everyone.rate)} patients: Wilson's 95 % interval "
            f"is {interval(everyone.rate)} %, and an error rate of up to "
            f"{rounded(100 * everyone.error_bound):.1f} % fits the result.",
            f"{reproduced} of {len(audit.p_values)} p-values of Table 5 are reproduced, by a "
            "one-sided z-test with unpooled standard error and 21 as the denominator of every "
            "figure.",
            f"McNemar's exact test on the same patients gives p = {exact}.",
            kappas[0].upper() + kappas[1:] + ".",
            f"{sum(audit.damaged_as_printed.values())} of {len(audit.damaged)} damaged models of "
            "Table 7 agree with the counts that the notebook stores.",
        )
    )


def _patients(audit: MaseresAudit) -> Section:
    return Section(
        "The three networks on 21 test patients",
        (
            "Normal is the positive class in this paper: its sensitivity is the recall of normal "
            "patients, its specificity the recall of COVID-19 patients.",
            Table(
                "Per cent with Wilson's 95 % interval",
                ("Network", "Right", "Accuracy", "COVID-19 found", "Normal found", "PPV of normal",
                 "AUC printed", "Pairs in order"),
                tuple(_model_row(each) for each in audit.patients),
            ),
            Picture(
                "maseres_patients",
                "Accuracy on the 21 test patients with Wilson's 95 % interval.",
                "; ".join(
                    f"{each.name} {percent(each.accuracy)} %, interval {interval(each.accuracy)}"
                    for each in audit.patients
                )
                + ": the intervals overlap.",
                partial(audit_pictures.draw_patient_models, audit),
            ),
        ),
    )  # fmt: skip


def _model_row(each: ModelAudit) -> tuple[str, ...]:
    pairs = "–" if each.pairs_in_order is None else f"{each.pairs_in_order:g} of {each.num_pairs}"
    return (
        each.name,
        counted(each.accuracy),
        with_interval(each.accuracy),
        f"{counted(each.covid_recall)}: {with_interval(each.covid_recall)}",
        f"{counted(each.scores.sensitivity)}: {with_interval(each.scores.sensitivity)}",
        with_interval(each.scores.ppv),
        "–" if each.auc is None else f"{each.auc:.4f}",
        pairs,
    )


def _meaning(audit: MaseresAudit) -> Section:
    return Section(
        "What 21 of 21 means",
        (
            "No error among n patients does not mean an error rate of zero. The exact one-sided "
            "bound is the largest rate that would still give no error with a probability of 5 %; "
            "3 / n, the rule of three, approximates it. "
            f"{audit.patients_needed} patients without an error would be needed to put the error "
            "rate under 5 %.",
            Table(
                "Rates of right decisions in per cent, error rates at most",
                ("Cases", "Right", "Wilson 95 %", "Clopper-Pearson 95 %", "Error rate at most",
                 "Rule of three"),
                tuple(_meaning_row(each) for each in audit.no_errors),
            ),
        ),
    )  # fmt: skip


def _meaning_row(each: NoErrors) -> tuple[str, ...]:
    return (
        each.what,
        counted(each.rate),
        interval(each.rate),
        f"{rounded(100 * each.exact_low):.1f}–100.0",
        f"{rounded(100 * each.error_bound):.1f} %",
        f"{rounded(100 * each.rule_of_three):.1f} %",
    )


def _ctset(audit: MaseresAudit) -> Section:
    found = audit.ctset_scores
    if found is None:
        return Section("Table 6: COVID-CTset", (f"{len(audit.ctset)} sets of counts fit.",))
    counts = found.scores.counts
    return Section(
        "Table 6: COVID-CTset",
        (
            f"All five printed figures belong to one set of counts only: {counts.tp} of "
            f"{counts.tp + counts.fn} normal and {counts.tn} of {counts.tn + counts.fp} COVID-19 "
            f"patients right. COVID-19 recall is {with_interval(found.covid_recall)} %, accuracy "
            f"{with_interval(found.accuracy)} %. The figures are those of the validation part.",
        ),
    )


def _damaged(audit: MaseresAudit) -> Section:
    rows = tuple(
        (
            each.name,
            f"{counted(each.covid_recall)}: {with_interval(each.covid_recall)}",
            f"{counted(each.scores.sensitivity)}: {with_interval(each.scores.sensitivity)}",
            f"{counted(each.accuracy)}: {with_interval(each.accuracy)}",
            "yes" if audit.damaged_as_printed[each.name] else "no",
        )
        for each in audit.damaged
    )
    return Section(
        "Table 7: the damaged models",
        (
            "One random choice of units per component, 21 patients: the intervals say how little "
            "separates the rows.",
            Table(
                "Right decisions, per cent with Wilson's 95 % interval",
                ("Model", "COVID-19", "Normal", "All", "Table 7 agrees"),
                rows,
            ),
        ),
    )


def _slices(audit: MaseresAudit) -> Section:
    rows = tuple(
        (
            each.name,
            counted(each.accuracy),
            with_interval(each.accuracy, 2),
            str(each.scores.counts.fp),
            str(each.scores.counts.fn),
        )
        for each in audit.slices
    )
    return Section(
        "The slice level",
        (
            "966 slices, split at random over slices: nothing keeps the slices of a patient on one "
            "side, so slices are not independent cases and the intervals are too narrow. Every "
            "COVID-19 slice comes from one source and every normal slice from another.",
            Table(
                "Six transfer networks on 966 slices",
                ("Network", "Right", "Accuracy, % (Wilson 95 %)", "COVID-19 slices missed",
                 "Normal slices missed"),
                rows,
            ),
        ),
    )  # fmt: skip


def _split(audit: MaseresAudit) -> Section:
    words = ", ".join(f"{k}: {'yes' if v else 'no'}" for k, v in audit.split_as_printed.items())
    return Section(
        "The split",
        (
            "Names sorted as text and shuffled with Python's Random(1) begin with the five names "
            f"that the notebooks print ({words}): the patients of the test set are known.",
        ),
    )
