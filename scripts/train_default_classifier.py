"""Make the default classifier: simulate, prepare, train, test, and write its folder.

    python scripts/train_default_classifier.py WORK_FOLDER [--patients 130] [--epochs 22]

Every simulated thorax is used three times, with each pattern put into the same lungs, so that
nothing but the pattern tells the classes apart. Where the real normal scan of COVID-CT-MD is at
hand (CHESTCT_DATA or ../shared/data), lesions are inserted into its lungs too. The 300 test
patients are simulated from other seeds. P001 is never trained on; it and normal001 are answered
at the end, and the answers stand in the card as they are.

Prepared examples are kept in WORK_FOLDER: started again, the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from chestct import __version__
from chestct.card import Card, MeasuredResult
from chestct.classifier import Classifier, load_classifier, save_classifier
from chestct.datasets.augment import Augmentation
from chestct.datasets.examples import Example, ExampleFolder, write_example
from chestct.engines import make_engine
from chestct.evaluation.intervals import estimate_figures
from chestct.evaluation.predictions import Predictions
from chestct.labels import COVID19, NORMAL, THREE_CLASSES
from chestct.networks import NETWORKS
from chestct.preprocess.prepare import prepare
from chestct.preprocess.recipes import RECIPES
from chestct.readers import read_volume
from chestct.simulate import ThoraxSettings, insert_lesions, simulate_patient
from chestct.training.loop import train
from chestct.training.outputs import evaluate
from chestct.training.run import LabelledSets
from chestct.training.settings import TrainingSettings
from chestct.volume import Volume

RECIPE = replace(
    RECIPES["roi_resnet_recommended"],
    name="roi_resnet_recommended_3mm",
    spacing_mm=(3.0, 3.0, 3.0),
    input_shape=(104, 88, 120),
)
NETWORK_SETTINGS = {"width": 16, "gating": "all", "head_units": 128, "dropout": 0.3}
SEEDS = {"training": 1, "validation": 2, "test": 3, "real": 4}
NUM_REAL_VARIANTS = 20
NUM_TEST_PER_CLASS = 100
SLICE_SPACINGS_MM = (2.0, 3.0, 5.0)


def thorax_settings(index: int) -> ThoraxSettings:
    """Scans a little finer than the input's 3 mm, with all usual slice spacings."""
    return ThoraxSettings(rows=192, slice_spacing_mm=SLICE_SPACINGS_MM[index // 3 % 3])


def write_prepared(volume: Volume, label: str, path: Path) -> None:
    """Prepare one scan with the classifier's recipe and keep it."""
    prepared = prepare(volume, RECIPE)
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


def make_test_example(index: int, *, folder: Path) -> None:
    """One simulated patient of its own, its class given by its number."""
    label = THREE_CLASSES[index % len(THREE_CLASSES)]
    path = folder / f"{index:04d}_{label}.npz"
    if not path.is_file():
        rng = np.random.default_rng([SEEDS["test"], index])
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
        lungs = prepare(volume, RECIPE).scan_lungs.voxels
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
    print("test: simulated patients of their own", flush=True)
    num_test = NUM_TEST_PER_CLASS * len(THREE_CLASSES)
    run_all(partial(make_test_example, folder=work / "test"), num_test, processes)
    scan = find_real_scan("normal001")
    if scan is not None:
        print("training: patterns in the real normal lungs", flush=True)
        make = partial(make_real_example, folder=work / "training", scan=scan)
        run_all(make, NUM_REAL_VARIANTS * len(THREE_CLASSES), processes)


def measure_results(network: torch.nn.Module, folder: Path) -> tuple[MeasuredResult, ...]:
    """Accuracy, sensitivities and areas under the ROC on the simulated test patients."""
    examples = ExampleFolder(folder)
    outputs = evaluate(network, examples, batch_size=8)
    names = tuple(path.stem for path in examples.paths)
    predictions = Predictions(
        scans=names,
        patients=names,
        truth=outputs.labels.numpy(),
        probabilities=outputs.logits.double().softmax(1).numpy(),
        labels=THREE_CLASSES,
    )
    figures = estimate_figures(predictions)
    found = {name: figures.overall[name] for name in ("accuracy", "macro_auc")}
    for label in THREE_CLASSES:
        found[f"sensitivity for {label}"] = figures.per_class[label]["sensitivity"]
    words = "simulated patients from seeds not used in training"
    return tuple(
        MeasuredResult(
            measure=name.replace("_", " "),
            value=round(estimate.value, 4),
            low=round(estimate.low, 4),
            high=round(estimate.high, 4),
            num_scans=estimate.total or len(names),
            scans=words,
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
    parser.add_argument("--patients", type=int, default=130, help="simulated chests to train on")
    parser.add_argument("--epochs", type=int, default=22)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("src/chestct/default_classifier"))
    arguments = parser.parse_args()

    make_examples(arguments.work, arguments.patients, arguments.processes)
    torch.manual_seed(1)
    network = NETWORKS["roi_resnet18"](in_channels=1, num_classes=3, **NETWORK_SETTINGS)
    settings = TrainingSettings(epochs=arguments.epochs, batch_size=8, label_smoothing=0.05)
    sets = LabelledSets(
        training=ExampleFolder(arguments.work / "training"),
        validation=ExampleFolder(arguments.work / "validation"),
        num_classes=len(THREE_CLASSES),
    )
    history = train(
        network,
        sets,
        settings,
        arguments.work / "run",
        augmentation=Augmentation(),
    )
    print(json.dumps(asdict(history[-1])))
    write_classifier(network, arguments.work, arguments.out)


def write_classifier(network: torch.nn.Module, work: Path, out: Path) -> None:
    """Test the network and write the classifier's folder with what the tests gave."""
    num_training = len(ExampleFolder(work / "training"))
    card = make_card(num_training, measure_results(network, work / "test"))
    save_classifier(out, network, card)
    answers = real_answers(load_classifier(out))
    card = card.model_copy(update={"results": (*card.results, *answers)})
    save_classifier(out, network, card)
    print(card.model_dump_json(indent=1))


def make_card(num_training: int, results: tuple[MeasuredResult, ...]) -> Card:
    """The classifier's card."""
    return Card(
        name="default",
        version=__version__,
        network="roi_resnet18",
        network_settings=NETWORK_SETTINGS,
        recipe=asdict(RECIPE),
        labels=THREE_CLASSES,
        trained_on=(
            f"SIMULATED DISEASE. {num_training} examples: simulated chests with simulated "
            "lesions, and simulated lesions inserted into one real normal scan (COVID-CT-MD, "
            "normal001). No real pneumonia was seen in training. For trying the software only."
        ),
        results=results,
        versions={"chestct": __version__, "torch": torch.__version__, "numpy": np.__version__},
        licence="Apache-2.0",
    )


if __name__ == "__main__":
    main()
