"""Reporting checklists, filled in as far as a run, a manifest, a card and an evaluation know.

CLAIM 2024 update (Tejani et al., Radiology: Artificial Intelligence 2024, doi 10.1148/ryai.240300)
and TRIPOD+AI (Collins et al., BMJ 2024, doi 10.1136/bmj-2023-078378, CC BY 4.0). `checklists.csv`
holds their numbers and headings; what is said of an item beside these is in our words.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

from chestct.classifier import Classifier
from chestct.datasets.manifest import Manifest, flow_of
from chestct.evaluation.report import FIGURE_NAMES, Summary
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.lookup import look_up
from chestct.report.tables import as_markdown_table
from chestct.storage import write_text
from chestct.training.data import parts_in_run
from chestct.training.plan import RUN_FILE, SCANS_FILE

CHECKLISTS: Final = {
    "claim": "CLAIM, 2024 update, doi 10.1148/ryai.240300",
    "tripod-ai": "TRIPOD+AI, 2024, doi 10.1136/bmj-2023-078378",
}
"""Name to what it is."""
_FOR_THE_AUTHOR: Final = "**for the author**"


def require_checklists(names: Sequence[str]) -> None:
    """Refuse names of checklists that there are none of.

    Raises:
        UnknownNameError: There is no such checklist.
    """
    for name in names:
        look_up(CHECKLISTS, name, kind="checklist")


def write_checklist(
    name: str,
    folder: Path,
    classifier: Classifier,
    manifest: Manifest,
    summary: Summary,
    excluded: Mapping[str, str],
) -> Path:
    """Write `checklist_NAME.md`: every item, with what is known of it or marked for the author.

    `excluded` are scans without a decision, with the reason.

    Raises:
        UnknownNameError: There is no such checklist.
        WriteError: It cannot be written.
    """
    require_checklists([name])
    facts = {
        **_of_scans(classifier, manifest, summary, len(excluded)),
        **_of_classifier(classifier),
        **_of_run(classifier, manifest),
        **_of_results(summary),
    }
    text = files("chestct.training").joinpath("checklists.csv").read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(text.splitlines()) if row["list"] == name]
    said = [facts.get(row["fact"], "") for row in rows]
    lines = [
        [row["item"], row["section"], row["about"], fact or _FOR_THE_AUTHOR]
        for row, fact in zip(rows, said, strict=True)
    ]
    table = as_markdown_table(["item", "section", "what it asks for, in our words", "known"], lines)
    return write_text(
        folder / f"checklist_{name}.md",
        f"# {CHECKLISTS[name]}\n\n{NOT_FOR_CLINICAL_USE}\n\n{sum(map(bool, said))} of {len(rows)} "
        "items are filled in from the run, the manifest, the card and the evaluation; read them, "
        "and say more where the item asks for more. Numbers and headings are the list's; its own "
        f"wording stands where it was published.\n\n{table}\n",
    )


def _of_scans(
    classifier: Classifier, manifest: Manifest, summary: Summary, num_excluded: int
) -> dict[str, str]:
    """What the manifest and the scans say."""
    cases = ", ".join(f"{count} {label}" for label, count in summary.cases.items())
    developed = f"Development: {classifier.card.trained_on}"
    reasons = Counter(row.excluded for row in manifest.excluded)
    steps = "; ".join(
        f"{step}: {scans} scans of {patients} patients"
        for step, scans, patients, *_ in flow_of(manifest).rows
    )
    sites = sorted({row.site for row in manifest.rows if row.site})
    dates = sorted({row.others["date"] for row in manifest.rows if row.others.get("date")})
    groups = {"site": summary.sites, **summary.groups}
    sizes = {
        name: f"{name}: " + ", ".join(f"{value} {part.num_scans}" for value, part in parts.items())
        for name, parts in groups.items()
        if parts
    }
    return {
        "sources": f"Evaluation: {manifest.name}. {developed}",
        "excluded": "; ".join(f"{count} scans: {why}" for why, count in reasons.items()),
        "missing": f"{num_excluded} scans without a decision are left out of the figures.",
        "acquisition": "; ".join(sizes[name] for name in _ACQUISITION if name in sizes),
        "sites": f"Evaluation: {len(sites)} sites, {', '.join(sites)}." if sites else "",
        "dates": f"Evaluation: {dates[0]} to {dates[-1]}." if dates else "",
        "flow": f"{steps}; without a decision: {num_excluded} scans.",
        "groups": f"Evaluation, scans by {'; '.join(sizes.values())}." if sizes else "",
        "numbers": f"Evaluation: {summary.num_scans} scans of {summary.num_patients} patients "
        f"({cases}). {developed}",
        "outcome": f"One of {', '.join(summary.labels)} per scan, as {manifest.name} labels it.",
    }


_ACQUISITION: Final = ("scanner", "slice_thickness_mm")


def _of_classifier(classifier: Classifier) -> dict[str, str]:
    """What the card says."""
    card, recipe = classifier.card, classifier.recipe
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    prepared = ", ".join(f"{name} {value}" for name, value in card.recipe.items() if name != "name")
    settings = json.dumps(card.network_settings, ensure_ascii=False)
    below = card.abstention and card.abstention.abstain_below
    return {
        "technology": f"Deep learning: a 3D neural network ({card.network}) on whole chest CT.",
        "preparation": f"Recipe '{recipe.name}': {prepared}.",
        "predictors": "The voxels of the scan, prepared as in item 7; no clinical variable.",
        "model": f"{card.network}, settings {settings}; logits divided by {card.temperature:.4g}. "
        "The weights and the card are the classifier's folder.",
        "software": versions,
        "ensemble": "None: one network.",
        "explanation": f"Heat-maps: {card.explanation}.",
        "output": f"A probability for each of {', '.join(card.labels)}; "
        + (
            "each finding is present from its own threshold on."
            if classifier.are_findings
            else "the decision is the largest"
            + (f", uncertain below {below:.4g}." if below else ".")
        ),
        "unsuitable": "A scan that cannot be read, or in which no lungs are found, gets no "
        "decision, with the reason.",
        "availability": f"Licence of the weights: {card.licence}",
        "limits": card.notice,
    }


def _of_run(classifier: Classifier, manifest: Manifest) -> dict[str, str]:
    """What the record of the classifier's run says; empty texts where it is not there."""
    folder = classifier.folder.resolve()
    found = [each / RUN_FILE for each in folder.parents[:2] if (each / RUN_FILE).is_file()]
    if not found:
        return {}
    record = json.loads(found[0].read_text(encoding="utf-8"))
    settings, given = record["settings"], record.get("pretrained_sha256")
    training, data = settings["training"], settings["data"]
    folds = f"{record['folds']} folds; " if record["folds"] else ""
    kept = {"best": "of the epoch with the lowest validation loss", "last": "of the last epoch"}
    averaged = "averaged " if training.get("average_weights") else ""
    parts = parts_in_run(folder, manifest) or {}
    counts = ", ".join(f"{n} {part}" for part, n in Counter(parts.values()).items())
    return {
        "partitions": f"{folds}a validation share of {data['validation_share']} drawn with seed "
        f"{data['split_seed']}, unless the manifest divides the scans; listed in {SCANS_FILE}.",
        "disjoint": "Patients: a training with a patient or a scan on two sides is refused.",
        "beginning": f"Given weights, SHA-256 {given}." if given else "Drawn at random.",
        "training": "; ".join(f"{name} {training[name]}" for name in _SAID_OF_TRAINING)
        + f"; augmentation {settings['augmentation']['name']}.",
        "selection": f"The {averaged}weights {kept[training['keep']]}.",
        "imbalance": f"Class weights: {training['class_weights']}; sampling: "
        f"{training['sampling']}; a temperature is fitted on the validation part.",
        "internal": f"Of these scans, by their part in the classifier's own run: {counts}."
        if counts
        else "None of these scans is in the classifier's own run.",
    }


_SAID_OF_TRAINING: Final = (
    *("epochs", "batch_size", "accumulation", "optimizer", "learning_rate", "schedule"),
    *("weight_decay", "label_smoothing", "mixup_alpha", "early_stopping_epochs", "seed"),
)


def _of_results(summary: Summary) -> dict[str, str]:
    """What the evaluation found."""
    figures = summary.figures
    overall = [f"{FIGURE_NAMES[name]} {each.words}" for name, each in figures.overall.items()]
    diagnostic = [
        f"{label}: "
        + ", ".join(
            f"{FIGURE_NAMES[name]} {each[name].words}" for name in _DIAGNOSTIC if name in each
        )
        for label, each in figures.per_class.items()
    ]
    sites = [
        f"{site} {part.figures.overall['accuracy'].words}" for site, part in summary.sites.items()
    ]
    num_wrong = summary.num_scans - int(summary.confusion.trace())
    named = [*figures.overall, *next(iter(figures.per_class.values()))]
    return {
        "measures": ", ".join(FIGURE_NAMES[name] for name in named)
        + "; the figures are listed in docs/evaluation.md.",
        "statistics": "95 % intervals: Wilson's for proportions, otherwise a bootstrap over "
        "patients; tests of paired answers: McNemar's, DeLong's.",
        "performance": f"{'; '.join(overall)}. Groups: groups.csv.",
        "diagnostic": f"{'; '.join(diagnostic)}.",
        "failures": f"{num_wrong} of {summary.num_scans} scans are wrong: evaluation.html."
        if summary.confusion.size
        else "",
        "by_site": f"Accuracy by site: {'; '.join(sites)}." if sites else "",
    }


_DIAGNOSTIC: Final = ("sensitivity", "specificity", "ppv", "npv", "auc")
