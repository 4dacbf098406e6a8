"""Make the default classifier: simulate, prepare, train, test, and write its folder.

    python scripts/train_default_classifier.py WORK_FOLDER [--patients 400] [--epochs 14]

Network, recipe, augmentation and training are those of configs/default_classifier.yaml. Every
simulated thorax is used three times, with each pattern put into the same lungs, so that nothing but
the pattern tells the classes apart. Where the real normal scan of COVID-CT-MD is at hand
(CHESTCT_DATA or ../shared/data), lesions are inserted into its lungs too. The 300 test patients are
simulated from other seeds. P001 is never trained on; it and normal001 are answered at the end, and
the answers stand in the card as they are. The temperature of the probabilities is fitted to 150
further simulated patients, before the test patients are looked at: on the validation chests the
network makes no mistake, which would leave nothing to fit. The threshold below which the classifier
had better not decide is chosen on the same 150.

Prepared examples are kept in WORK_FOLDER: started again, the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from chestct import __version__
from chestct.card import Card, MeasuredResult
from chestct.classifier import Classifier, load_classifier, save_classifier
from chestct.datasets.examples import Example, ExampleFolder, write_example
from chestct.engines import make_engine
from chestct.evaluation.calibration import (
    abstention_threshold,
    apply_temperature,
    fit_temperature,
)
from chestct.evaluation.intervals import estimate_figures
from chestct.evaluation.predictions import Predictions
from chestct.labels import COVID19, NORMAL, THREE_CLASSES
from chestct.preprocess.prepare import prepare
from chestct.preprocess.recipe import Recipe
from chestct.readers import read_volume
from chestct.simulate import ThoraxSettings, insert_lesions, simulate_patient
from chestct.training.components import Parts, find_parts
from chestct.training.loop import evaluate, train
from chestct.training.results import abstention_of
from chestct.training.run import LabelledSets
from chestct.training.settings import read_settings
from chestct.volume import Volume

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "default_classifier.yaml"
SEEDS = {"training": 1, "validation": 2, "test": 3, "real": 4, "calibration": 5}
NUM_REAL_VARIANTS = 20
NUM_PATIENTS = {"calibration": 150, "test": 300}
WISHED_ERROR = 0.05
SLICE_SPACINGS_MM = (2.0, 3.0, 5.0)


@cache
def recipe() -> Recipe:
    """How the classifier's scans are prepared."""
    return find_parts(read_settings(CONFIG)).recipe


def thorax_settings(index: int) -> ThoraxSettings:
    """Scans a little finer than the input's 3 mm, with all usual slice spacings."""
    return ThoraxSettings(rows=192, slice_spacing_mm=SLICE_SPACINGS_MM[index // 3 % 3])


def write_prepared(volume: Volume, label: str, path: Path) -> None:
    """Prepare one scan with the classifier's recipe and keep it."""
    prepared = prepare(volume, recipe())
    write_example(path, Example(prepared.input, prepared.lungs, THREE_CLASSES.index(label)))


def make_same_thorax_examples(index: int, *, folder: Path, seed: int) -> None:
    """One simulated thorax, three examples: each pattern in the same lungs."""
    paths = {label: folder / f"{index:04d}_{label}.npz" for label in THREE_CLASSES}
    if all(path.is_file() for path in paths.values()):
        return
    rng = np.random.default_rng([seed, index])
    patient = simulate_patient(rng, thorax_settings(index), pattern=NORMAL)
    for label, path in paths.items():
        if label == NORMAL:
            write_prepared(patient.volume, label, path)
        else:
            volume, _ = insert_lesions(patient.volume, patient.lungs, label, rng)
            write_prepared(volume, label, path)


def make_patient_example(index: int, *, folder: Path, seed: int) -> None:
    """One simulated patient of its own, its class given by its number."""
    label = THREE_CLASSES[index % len(THREE_CLASSES)]
    path = folder / f"{index:04d}_{label}.npz"
    if not path.is_file():
        rng = np.random.default_rng([seed, index])
        write_prepared(
            simulate_patient(rng, thorax_settings(index), pattern=label).volume, label, path
        )


def make_real_example(index: int, *, folder: Path, scan: Path) -> None:
    """The real normal scan, with a pattern inserted, or as it is."""
    label = THREE_CLASSES[index % len(THREE_CLASSES)]
    path = folder / f"real_{index:04d}_{label}.npz"
    if path.is_file():
        return
    volume = read_volume(scan)
    if label != NORMAL:
        lungs = prepare(volume, recipe()).scan_lungs.voxels
        rng = np.random.default_rng([SEEDS["real"], index])
        volume, _ = insert_lesions(volume, lungs, label, rng)
    write_prepared(volume, label, path)


def find_real_scan(name: str) -> Path | None:
    """Folder of a COVID-CT-MD sample, where the real scans are at hand."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    scan = Path(os.environ.get("CHESTCT_DATA", beside)) / "covid_ct_md" / name
    return scan if scan.is_dir() else None


def run_all(make: Callable[[int], None], num: int, processes: int) -> None:
    """Call `make` for 0 .. num - 1, in several processes."""
    # Forking a process that has used torch's threads can hang; a fresh interpreter cannot.
    with get_context("spawn").Pool(
        processes, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for done, _ in enumerate(pool.imap_unordered(make, range(num)), start=1):
            if done % 25 == 0 or done == num:
                print(f"  {done} of {num}", flush=True)


def make_examples(work: Path, num_patients: int, processes: int) -> None:
    """Simulate and prepare everything that is not there yet."""
    for part, num in (("training", num_patients), ("validation", max(num_patients // 8, 4))):
        print(f"{part}: {num} simulated chests, three patterns each", flush=True)
        make = partial(make_same_thorax_examples, folder=work / part, seed=SEEDS[part])
        run_all(make, num, processes)
    for part, num in NUM_PATIENTS.items():
        print(f"{part}: {num} simulated patients of their own", flush=True)
        make = partial(make_patient_example, folder=work / part, seed=SEEDS[part])
        run_all(make, num, processes)
    scan = find_real_scan("normal001")
    if scan is not None:
        print("training: patterns in the real normal lungs", flush=True)
        make = partial(make_real_example, folder=work / "training", scan=scan)
        run_all(make, NUM_REAL_VARIANTS * len(THREE_CLASSES), processes)


def predict(network: torch.nn.Module, folder: Path) -> Predictions:
    """What the network says of a folder of examples, before any temperature."""
    examples = ExampleFolder(folder)
    outputs = evaluate(network, examples, batch_size=8)
    names = tuple(path.stem for path in examples.paths)
    return Predictions(
        scans=names,
        patients=tuple(name.partition("_")[0] for name in names),
        truth=outputs.labels.numpy(),
        probabilities=outputs.logits.double().softmax(1).numpy(),
        labels=THREE_CLASSES,
    )


def measure_results(predictions: Predictions) -> tuple[MeasuredResult, ...]:
    """Accuracy, sensitivities, area under the ROC and calibration on the test patients."""
    figures = estimate_figures(predictions)
    names = ("accuracy", "macro_auc", "log_loss", "expected_calibration_error")
    found = {name: figures.overall[name] for name in names}
    for label in THREE_CLASSES:
        found[f"sensitivity for {label}"] = figures.per_class[label]["sensitivity"]
    return tuple(
        MeasuredResult(
            measure=name.replace("_", " "),
            value=round(estimate.value, 4),
            low=round(estimate.low, 4),
            high=round(estimate.high, 4),
            num_scans=estimate.total or len(predictions),
            scans="simulated patients from seeds not used in training",
        )
        for name, estimate in found.items()
    )


def real_answers(classifier: Classifier) -> tuple[MeasuredResult, ...]:
    """Probabilities for the two real scans, as they come."""
    engine = make_engine(classifier, "torch")
    answers = []
    for name, label, use in (
        ("P001", COVID19, "never trained on"),
        ("normal001", NORMAL, "its lungs were trained on"),
    ):
        scan = find_real_scan(name)
        if scan is not None:
            shares = classifier.probabilities(prepare(read_volume(scan), classifier.recipe), engine)
            answers.append(
                MeasuredResult(
                    measure=f"probability of {label}",
                    value=round(shares[label], 4),
                    num_scans=1,
                    scans=f"{name} of COVID-CT-MD, a real scan of {label}; {use}",
                )
            )
    return tuple(answers)


def main() -> None:
    """Do everything, or go on where it was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path, help="folder for prepared examples and the run")
    parser.add_argument("--patients", type=int, default=400, help="simulated chests to train on")
    parser.add_argument("--epochs", type=int, help="other than the settings file's")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("src/chestct/default_classifier"))
    arguments = parser.parse_args()

    make_examples(arguments.work, arguments.patients, arguments.processes)
    overrides = [] if arguments.epochs is None else [f"training.epochs={arguments.epochs}"]
    settings = read_settings(CONFIG, overrides)
    parts = find_parts(settings)
    network = parts.build_network(settings.training.seed)
    sets = LabelledSets(
        training=ExampleFolder(arguments.work / "training"),
        validation=ExampleFolder(arguments.work / "validation"),
        num_classes=len(THREE_CLASSES),
    )
    history = train(
        network,
        sets,
        settings.training,
        arguments.work / "run",
        augmentation=parts.augmentation,
        after_epoch=lambda entry: print(json.dumps(asdict(entry)), flush=True),
    )
    print(f"lowest validation loss {min(entry.validation_loss for entry in history):.4f}")
    write_classifier(network, parts, arguments.work, arguments.out)


def write_classifier(network: torch.nn.Module, parts: Parts, work: Path, out: Path) -> None:
    """Calibrate and test the network and write the classifier's folder with what came out."""
    watched = predict(network, work / "calibration")
    temperature = fit_temperature(watched).temperature
    calibrated = watched.with_probabilities(apply_temperature(watched.probabilities, temperature))
    promised = abstention_threshold(calibrated, WISHED_ERROR)
    tested = predict(network, work / "test")
    tested = tested.with_probabilities(apply_temperature(tested.probabilities, temperature))
    card = Card(
        name="default",
        version=__version__,
        network=parts.network,
        network_settings=parts.network_settings,
        recipe=asdict(parts.recipe),
        labels=parts.labels,
        trained_on=(
            f"SIMULATED DISEASE. {len(ExampleFolder(work / 'training'))} examples: simulated "
            "chests with simulated lesions, and simulated lesions inserted into one real normal "
            "scan (COVID-CT-MD, normal001). No real pneumonia was seen in training. For trying "
            "the software only."
        ),
        results=measure_results(tested),
        versions={"chestct": __version__, "torch": torch.__version__, "numpy": np.__version__},
        licence="Apache-2.0",
        temperature=round(temperature, 4),
        abstention=abstention_of(promised, len(watched)),
        explanation="gradcam++:layer2",
    )
    save_classifier(out, network, card)
    answers = real_answers(load_classifier(out))
    card = card.model_copy(update={"results": (*card.results, *answers)})
    save_classifier(out, network, card)
    print(card.model_dump_json(indent=1))


if __name__ == "__main__":
    main()
