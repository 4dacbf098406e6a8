"""The part of the audit report on the MASERes paper."""

from __future__ import annotations

from functools import partial

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
from chestct.studies.audit_maseres import MaseresAudit, ModelAudit, NoErrors
from chestct.studies.audit_maseres_tests_text import kappas_section, table_5_section
from chestct.studies.audit_scores import rounded


def maseres_sections(audit: MaseresAudit) -> tuple[Section, ...]:
    """Everything on this paper, its main points first."""
    return (
        Section("The MASERes paper", (audit.citation + ".", _points(audit)), level=2),
        _patients(audit),
        _meaning(audit),
        table_5_section(audit),
        kappas_section(audit),
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
