"""From a manifest to what a training learns from: divided, checked, prepared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chestct.card import PictureForm
from chestct.datasets.checks import (
    CheckReport,
    check_manifest,
    find_patient_leaks,
    find_pixel_leaks,
)
from chestct.datasets.confounders import BASELINE
from chestct.datasets.manifest import (
    TEST,
    TRAINING,
    VALIDATION,
    Manifest,
    ManifestRow,
    read_manifest,
)
from chestct.datasets.pictures import LabelledSlices, SliceStore, gather_slices
from chestct.datasets.scans import ScanFacts, gather_facts
from chestct.datasets.splits import (
    SHARES_PATIENTS,
    SLICE_SPLITS,
    SplitSettings,
    fold_parts,
    given,
    hold_out,
    k_fold,
    part,
)
from chestct.datasets.store import GIB, Cache, LabelledScans, Preparation, prepare_all
from chestct.errors import TrainingError
from chestct.lookup import first_lines_of, look_up
from chestct.preprocess.recipes import Recipe
from chestct.remote import refuse_secrets
from chestct.storage import cache_folder, write_text
from chestct.training.plan import SCANS_FILE, Listener, Plan
from chestct.training.run import LabelledSets
from chestct.training.settings import DataSection, SliceDataSection


@dataclass(frozen=True)
class Division:
    """The scans a training learns from, is watched on and, unless None, is judged on at the end.

    No patient is in two of them.
    """

    training: Manifest
    validation: Manifest
    test: Manifest | None = None

    @property
    def parts(self) -> dict[str, Manifest]:
        """The parts there are, by name."""
        parts = {TRAINING: self.training, VALIDATION: self.validation}
        return parts if self.test is None else {**parts, TEST: self.test}

    @property
    def joined(self) -> Manifest:
        """All scans, each with the name of its part as split, in the order of the manifest."""
        rows = [
            replace(row, split=name, fold=None)
            for name, part_of in self.parts.items()
            for row in part_of.rows
        ]
        return self.training.with_rows(sorted(rows, key=lambda row: row.number))

    def without(self, numbers: Collection[int]) -> Division:
        """The same division without some rows.

        Raises:
            ManifestError: A part would be empty or training would lack a class.
        """
        if not numbers:
            return self
        kept = {
            name: part_of.choose(lambda row: row.number not in numbers)
            for name, part_of in self.parts.items()
        }
        kept[TRAINING].require_classes(TRAINING)
        return Division(**kept)


def divide(manifest: Manifest, section: DataSection | SliceDataSection) -> Division:
    """Take the manifest's own split; where it has none for validation, draw that by patient.

    A column `fold` is not looked at.

    Raises:
        ManifestError: A patient is on two sides, a row stands nowhere, or a class is missing.
    """
    rows = manifest.with_rows(replace(row, fold=None) for row in manifest.rows)
    if not any(row.split for row in rows.rows):
        return _with_validation(rows, section, None)
    given(rows)
    training = part(rows, TRAINING)
    is_tested = any(row.split == TEST for row in rows.rows)
    test = part(rows, TEST) if is_tested else None
    if not any(row.split == VALIDATION for row in rows.rows):
        return _with_validation(training, section, test)
    training.require_classes(TRAINING)
    return Division(training, part(rows, VALIDATION), test)


@dataclass(frozen=True, eq=False)
class Training:
    """One network to be trained, and what it is called."""

    name: str
    folder: Path
    division: Division


def parts_in_run(classifier: Path, manifest: Manifest) -> dict[int, str] | None:
    """Row number to the part its scan had in the run that left a classifier in its folder.

    Scans that the run did not divide are not in it; None where there is no record of that.
    """
    record = classifier.resolve().parent / SCANS_FILE
    if not record.is_file():
        return None
    labels = manifest.labels if manifest.are_findings else ()
    run = read_manifest(record, labels, needs_files=False, are_findings=manifest.are_findings)
    parts = {_place(run, row): row.split for row in run.rows}
    places = {row.number: _place(manifest, row) for row in manifest.rows}
    return {number: parts[place] for number, place in places.items() if place in parts}


def _place(manifest: Manifest, row: ManifestRow) -> tuple[Path, str]:
    """Where a row's scan lies, and which series of that folder it is."""
    return manifest.path(row).resolve(), row.others.get("series", "")


def divided(plan: Plan, manifest: Manifest) -> tuple[Manifest, list[Training]]:
    """The scans with their folds, and the trainings they are divided for.

    Raises:
        ManifestError: A patient would be on two sides, or a part would lack a class.
        TrainingError: The manifest has another number of folds.
    """
    section = plan.settings.data
    if plan.num_folds is None:
        return manifest, [Training(plan.folder.name, plan.folder, divide(manifest, section))]
    dealt = _with_folds(manifest, plan.num_folds, section)
    trainings = [
        Training(f"fold {fold}", plan.folder / f"fold-{fold}", _divide_fold(dealt, fold, section))
        for fold in dealt.folds
    ]
    return dealt, trainings


def _with_folds(manifest: Manifest, num_folds: int, section: DataSection) -> Manifest:
    """Take the manifest's own folds, or deal its patients out to as many as are wanted.

    Raises:
        TrainingError: It has another number of folds.
        ManifestError: A patient is in two folds, or there are too few of a class.
    """
    if not manifest.folds:
        return k_fold(manifest, SplitSettings(folds=num_folds, seed=section.split_seed))
    if len(manifest.folds) != num_folds:
        msg = (
            f"{manifest.name} has {len(manifest.folds)} folds and {num_folds} were asked for. Use "
            f"--folds {len(manifest.folds)}, or take the column 'fold' out."
        )
        raise TrainingError(msg)
    return given(manifest)


def _divide_fold(manifest: Manifest, fold: int, section: DataSection) -> Division:
    """Hold a fold out for the test, and draw the validation part from the other folds.

    The fold itself chooses nothing, so that its results are not better than new patients' would be.

    Raises:
        ManifestError: A part would lack a class.
    """
    others, held = fold_parts(manifest, fold)
    return _with_validation(others, section, held)


def _with_validation(
    manifest: Manifest, section: DataSection | SliceDataSection, test: Manifest | None
) -> Division:
    """Draw the validation part by patient, every class in it."""
    wanted = SplitSettings(
        test_share=0.0, validation_share=section.validation_share, seed=section.split_seed
    )
    drawn = hold_out(manifest, wanted)
    return Division(part(drawn, TRAINING), part(drawn, VALIDATION), test)


def divide_slices(manifest: Manifest, section: SliceDataSection) -> Division:
    """The slices a run learns from, is watched on and is tested on.

    Raises:
        ManifestError: A patient would be on two sides, or a part would lack a class.
    """
    if section.split != SHARES_PATIENTS and any(row.split for row in manifest.rows):
        return divide(manifest, section)
    shares = SplitSettings(
        test_share=section.test_share,
        validation_share=section.validation_share,
        seed=section.split_seed,
    )
    split = look_up(SLICE_SPLITS, section.split, kind="split of slices")(manifest, shares)
    training = part(split, TRAINING)
    training.require_classes(TRAINING)
    return Division(training, part(split, VALIDATION), part(split, TEST))


def members_of(name: str, folder: Path, division: Division, num: int, seed: int) -> list[Training]:
    """The trainings of networks whose mean answers; of one alone, the division's own.

    Patients of the training and validation parts are dealt out anew: each member is watched on
    those that it alone does not learn from.

    Raises:
        ManifestError: A class has fewer patients than there are members.
    """
    if num == 1:
        return [Training(name, folder, division)]
    both = Division(division.training, division.validation).joined
    undivided = both.with_rows(replace(row, split="") for row in both.rows)
    dealt = k_fold(undivided, SplitSettings(folds=num, seed=seed))
    return [
        Training(
            f"{name}, member {fold}", folder / f"member-{fold}", Division(*fold_parts(dealt, fold))
        )
        for fold in dealt.folds
    ]


def patient_labels_of(manifest: Manifest) -> dict[str, str] | None:
    """Patient to the class in the column `patient_label`; None where there is no such column."""
    found = {
        row.patient: row.others["patient_label"]
        for row in manifest.rows
        if row.others.get("patient_label")
    }
    return found or None


def make_cache(section: DataSection, recipe: Recipe) -> Cache:
    """The cache of prepared inputs that the settings name.

    Raises:
        CacheError: Not even one input would fit.
        ReadError: It is an address with a password or a query.
    """
    folder = _kept_in(section.cache, "prepared")
    return Cache(folder, recipe, section.storage, int(section.cache_gib * GIB))


def _kept_in(named: str | None, usual: str) -> Path:
    """The folder or address that settings name, or this user's own."""
    if not named:
        return cache_folder() / usual
    refuse_secrets(named, "data.cache")
    return Path(named)


def check_scans(
    manifest: Manifest,
    divisions: Sequence[Division],
    cache: Cache,
    report_file: Path,
    listener: Listener,
) -> dict[int, ScanFacts]:
    """Read every scan once, refuse leaks, say what the results will be worth.

    The report is written as JSON, leaks or none; facts of scans are kept beside the cache's inputs.

    Returns:
        What is known of each scan, by the row's number; nothing where none of what the baseline
        asks is known.

    Raises:
        ManifestError: A patient or a scan's pixels would be on two sides, or a scan cannot be read.
    """
    facts = gather_facts(
        manifest,
        cache.folder,
        processes=listener.processes,
        progress=listener.watch("reading"),
    )
    by_row = {row.number: each for row, each in zip(manifest.rows, facts, strict=True)}
    # One run is judged as it is divided; of several each is judged, and all of them together.
    whole = divisions[0].joined if len(divisions) == 1 else manifest
    report = check_manifest(whole, [by_row[row.number] for row in whole.rows])
    for division in divisions if len(divisions) > 1 else ():
        report = _with_leaks(report, division, by_row)
    conclude_check(report, report_file, listener)
    asked = [each for each in report.confounders if each.variable in BASELINE]
    return by_row if any(each.auc is not None for each in asked) else {}


def conclude_check(report: CheckReport, file: Path, listener: Listener) -> None:
    """Write a report, say its warnings, and refuse what must not be trained on.

    Raises:
        ManifestError: The report says so.
    """
    write_text(file, report.as_json())
    for finding in report.warnings:
        listener.note(finding.sentence)
    report.refuse_leaks()


def read_slices(
    manifest: Manifest, form: PictureForm, listener: Listener, cache: str | None = None
) -> SliceStore:
    """All slices of a manifest, or what an earlier call kept in the cache (None: the user's).

    Raises:
        WriteError: The folder cannot be written.
    """
    return gather_slices(
        manifest,
        form,
        _kept_in(cache, "slices"),
        processes=listener.processes,
        progress=listener.watch("reading slices"),
    )


def prepare_scans(
    division: Division, section: DataSection, cache: Cache, listener: Listener
) -> dict[int, str]:
    """Prepare all inputs of a run that are not in the cache yet, once it is sure to hold all.

    Returns:
        Row number to the reason, of scans that should not be classified.

    Raises:
        TrainingError: A scan could not be prepared; the message names rows and reasons.
        CacheError: The cache cannot hold all of them at once, which is found before the first is
            prepared, or cannot be written.
    """
    # The first variant of a training scan is the scan as it is, which all parts have.
    cache.require_room(len(division.joined) + len(division.training) * (section.variants - 1))
    wanted = [("inputs", division.joined, 1)]
    if section.variants > 1:
        wanted.append(("variants", division.training, section.variants))
    unsuitable: dict[int, str] = {}
    for what, manifest, variants in wanted:
        prepared = prepare_all(
            cache,
            manifest,
            variants=variants,
            processes=listener.processes,
            progress=listener.watch(f"preparing {what}"),
        )
        _refuse_failed(manifest, prepared)
        unsuitable |= {row: " ".join(reasons) for row, reasons in prepared.unsuitable.items()}
        if prepared.num_made:
            listener.note(
                f"Prepared {prepared.num_made} {what} in {prepared.seconds:.0f} s; kept as "
                f"{section.storage}, largest error {prepared.max_error:.1e}."
            )
    return unsuitable


def _with_leaks(
    report: CheckReport, division: Division, by_row: Mapping[int, ScanFacts]
) -> CheckReport:
    """The report with what would leak in one of several divisions."""
    joined = division.joined
    facts = [by_row[row.number] for row in joined.rows]
    found = [*find_patient_leaks(joined), *find_pixel_leaks(joined, facts)]
    known = {(finding.kind, finding.rows) for finding in report.refusals}
    new = [f for f in found if f.severity == "refuse" and (f.kind, f.rows) not in known]
    return replace(report, findings=(*new, *report.findings))


def _refuse_failed(manifest: Manifest, prepared: Preparation) -> None:
    if not prepared.failed:
        return
    listed = first_lines_of(f"row {row}: {why}" for row, why in sorted(prepared.failed.items()))
    msg = (
        f"{manifest.name}: {len(prepared.failed)} scans could not be prepared:{listed}\n"
        "  Take these rows out or mend the scans; what is prepared so far is kept."
    )
    raise TrainingError(msg)


def labelled_sets(division: Division, cache: Cache, section: DataSection) -> LabelledSets:
    """A division's prepared inputs, as the loop takes them."""
    variants = {TRAINING: section.variants}
    parts = {
        name: LabelledScans(cache, part_of, variants.get(name, 1))
        for name, part_of in division.parts.items()
    }
    return LabelledSets(**parts, num_classes=len(division.training.labels))


def labelled_slices(division: Division, store: SliceStore) -> LabelledSets:
    """A division's slices, as the loop takes them."""
    parts = {name: LabelledSlices(store, part_of) for name, part_of in division.parts.items()}
    return LabelledSets(**parts, num_classes=len(division.training.labels))
