"""Reporting checklists, filled in as far as a run, a manifest, a card and an evaluation know.

CLAIM 2024 update (Tejani et al., Radiology: Artificial Intelligence 2024, doi 10.1148/ryai.240300)
and TRIPOD+AI (Collins et al., BMJ 2024, doi 10.1136/bmj-2023-078378, CC BY 4.0). `checklists.csv`
holds their numbers and headings, what is said of an item beside these being in our words, and
`checklists.j2` the words for what is known.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from chestct.classifier import Classifier
from chestct.datasets.manifest import Manifest, flow_of
from chestct.evaluation.report import FIGURE_NAMES, Summary
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.lookup import look_up
from chestct.report.document import fill_blocks
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
    facts = _facts(classifier, manifest, summary, len(excluded))
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


_SAID_OF_TRAINING: Final = (
    *("epochs", "batch_size", "accumulation", "optimizer", "learning_rate", "schedule"),
    *("weight_decay", "label_smoothing", "mixup_alpha", "early_stopping_epochs", "seed"),
)


def _facts(
    classifier: Classifier, manifest: Manifest, summary: Summary, num_excluded: int
) -> dict[str, str]:
    """What manifest, scans, card, run and evaluation say, by fact; empty where nothing is known."""
    run, card = _record_of_run(classifier), classifier.card
    parts = (parts_in_run(classifier.folder.resolve(), manifest) or {}) if run else {}
    figures, groups = summary.figures, {"site": summary.sites, **summary.groups}
    sizes = {
        name: f"{name}: " + ", ".join(f"{value} {part.num_scans}" for value, part in each.items())
        for name, each in groups.items()
        if each
    }
    return fill_blocks(
        "chestct.training/checklists.j2",
        card=card,
        recipe=classifier.recipe,
        are_findings=classifier.are_findings,
        settings=json.dumps(card.network_settings, ensure_ascii=False),
        manifest=manifest,
        flow=flow_of(manifest).rows,
        reasons=Counter(row.excluded for row in manifest.excluded),
        sites=sorted({row.site for row in manifest.rows if row.site}),
        dates=sorted({row.others["date"] for row in manifest.rows if row.others.get("date")}),
        num_excluded=num_excluded,
        run=run,
        parts=Counter(parts.values()),
        scans_file=SCANS_FILE,
        said_of_training=_SAID_OF_TRAINING,
        summary=summary,
        sizes=sizes,
        measures=[*figures.overall, *next(iter(figures.per_class.values()))],
        figure_names=FIGURE_NAMES,
    )


def _record_of_run(classifier: Classifier) -> Any:
    """The record of the classifier's run; None where it is not there."""
    folder = classifier.folder.resolve()
    found = [each / RUN_FILE for each in folder.parents[:2] if (each / RUN_FILE).is_file()]
    if not found:
        return None
    record = json.loads(found[0].read_text(encoding="utf-8"))
    training = {"average_weights": 0.0, **record["settings"]["training"]}
    settings = {**record["settings"], "training": training}
    return {"pretrained_sha256": None, **record, "settings": settings}
