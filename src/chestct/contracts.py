"""What every entry of the tables promises, as functions that raise where a promise is broken.

The tests run them over our own entries, and `chestct check-plugin` over those of other packages.
Each takes a case, which is an entry with something small to try it on, and says in the first line
of its docstring what is promised.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from chestct.analysis import ScanAnalysis
from chestct.arrays import Shape
from chestct.classifier import Classifier, load_classifier, save_weights
from chestct.errors import ChestCTError, NetworkError, ReadError, UnknownNameError
from chestct.explain.explanation import Explanation
from chestct.explain.run import explain
from chestct.networks import build_network
from chestct.networks.blocks import PooledNetwork, is_in_head
from chestct.preprocess.prepare import PreparedScan, prepare
from chestct.preprocess.recipes import Recipe, find_recipe, recipe_from_dict
from chestct.readers import format_of, read_volume
from chestct.volume import Volume, hash_voxels
from chestct.writers import WriteOptions
from chestct.writers.folders import write_outputs

if TYPE_CHECKING:
    from torch.nn.modules.batchnorm import _BatchNorm

_TOLERANCE: Final = 1e-4
"""By which logits of another engine may differ."""


def _require(is_kept: object, otherwise: str) -> None:
    if not is_kept:
        raise ChestCTError(otherwise)


@dataclass(frozen=True, eq=False)
class NetworkCase:
    """A network and an input size.

    Attributes:
        name: Name of the network, or of an encoder, which gets the head of `networks.encoders`.
        settings: The network's own settings.
        shape: Voxels of the input along (depth, height, width).
        inert: Names of parameters that are known to change nothing.
    """

    name: str
    settings: Mapping[str, object] = field(default_factory=dict)
    shape: Shape = (40, 36, 44)
    inert: frozenset[str] = frozenset()

    def build(self, in_channels: int = 1, num_classes: int = 3) -> nn.Module:
        """The network in eval mode, always with the same drawn weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            network = build_network(self.name, in_channels, num_classes, self.settings)
            settle_batch_norm(network, torch.rand(2, in_channels, *self.shape))
        return network.eval()

    @cached_property
    def network(self) -> nn.Module:
        """Of one channel and three classes, to be looked at only."""
        return self.build()

    def batch(self, in_channels: int = 1) -> tuple[Tensor, Tensor]:
        """Two scans of drawn values, and a box of lungs in the middle of each."""
        generator = torch.Generator().manual_seed(0)
        values = torch.rand(2, in_channels, *self.shape, generator=generator)
        lungs = torch.zeros(2, 1, *self.shape)
        middle = tuple(slice(size // 5, size - size // 5) for size in self.shape)
        lungs[(slice(None), slice(None), *middle)] = 1.0
        return values, lungs

    @cached_property
    def logits(self) -> Tensor:
        """What the network says of the batch."""
        with torch.no_grad():
            given: Tensor = self.network(*self.batch())
        return given


def settle_batch_norm(network: nn.Module, batch: Tensor) -> None:
    """Draw scales and shifts for every BatchNorm, and take its statistics from `batch`."""
    norms: list[_BatchNorm] = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.2)
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(batch)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


def _gives_a_row_of_logits_per_scan(case: NetworkCase) -> None:
    """Logits have a row per scan and a column per class, are finite, and differ between scans."""
    for in_channels, num_classes in ((1, 3), (3, 2)):
        network = case.network if in_channels == 1 else case.build(in_channels, num_classes)
        with torch.no_grad():
            logits = network(*case.batch(in_channels))
        _require(
            tuple(logits.shape) == (2, num_classes),
            f"of two scans and {num_classes} classes it gives logits of {tuple(logits.shape)}",
        )
        _require(logits.isfinite().all(), "its logits are not finite")
        _require(not torch.equal(logits[0], logits[1]), "two scans get the same logits")


def _learns_in_every_parameter(case: NetworkCase) -> None:
    """Every parameter gets a finite gradient that is not zero everywhere."""
    network = deepcopy(case.network).train()
    loss = nn.functional.cross_entropy(network(*case.batch()), torch.tensor([0, 2]))
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        gradient = parameter.grad
        _require(gradient is not None, f"'{name}' gets no gradient")
        _require(gradient is None or gradient.isfinite().all(), f"that of '{name}' is not finite")
        is_live = gradient is not None and bool(gradient.abs().sum() > 0)
        _require(is_live != (name in case.inert), f"'{name}' changes nothing")


def _answers_alike_and_changes_nothing(case: NetworkCase) -> None:
    """The same input gives the same logits to the last bit; input and weights stay as they were."""
    batch, lungs = case.batch()
    before = {name: value.clone() for name, value in case.network.state_dict().items()}
    with torch.no_grad():
        logits = case.network(batch, lungs)
    _require(torch.equal(logits, case.logits), "asked twice, it answers differently")
    _require(torch.equal(batch, case.batch()[0]), "it changes its input")
    _require(torch.equal(lungs, case.batch()[1]), "it changes the lungs")
    after = case.network.state_dict()
    _require(
        all(torch.equal(value, before[name]) for name, value in after.items()),
        "a forward pass in eval mode changes its weights",
    )


def _comes_back_from_a_file(case: NetworkCase) -> None:
    """Saved and loaded again it gives the same logits."""
    other = build_network(case.name, 1, 3, case.settings).eval()
    with TemporaryDirectory() as folder:
        save_weights(Path(folder) / "weights.safetensors", case.network)
        other.load_state_dict(load_file(Path(folder) / "weights.safetensors"))
    with torch.no_grad():
        _require(torch.equal(other(*case.batch()), case.logits), "its logits are others")


def _runs_without_lungs(case: NetworkCase) -> None:
    """It runs where no lung mask is given."""
    with torch.no_grad():
        logits = case.network(case.batch()[0])
    _require(logits.isfinite().all(), "its logits are not finite")


def _refuses_unknown_settings(case: NetworkCase) -> None:
    """A setting that it does not know is refused by its name."""
    try:
        build_network(case.name, 1, 3, {**case.settings, "depthh": 3})
    except (UnknownNameError, NetworkError) as error:
        _require("depthh" in str(error), "the message does not say which")
        return
    raise ChestCTError(
        "'depthh' is accepted: raise UnknownNameError, as chestct.networks.settings_from does"
    )


def _decides_in_its_head(case: NetworkCase) -> None:
    """It is a PooledNetwork: `HEAD` names what decides on its pooled features, and nothing else."""
    network = deepcopy(case.network).train()
    _require(isinstance(network, PooledNetwork), "it is no chestct.networks.blocks.PooledNetwork")
    assert isinstance(network, PooledNetwork)
    with torch.no_grad():
        pooled = network.pooled_features(*case.batch())
    _require(pooled.ndim == 2, f"pooled features have the shape {tuple(pooled.shape)}")
    network.logits_of(pooled).square().sum().backward()  # type: ignore[no-untyped-call]
    decides = {name for name, each in network.named_parameters() if each.grad is not None}
    named = {name for name, _ in network.named_parameters() if is_in_head(network, name)}
    _require(decides == named, f"HEAD names {sorted(named)}, and {sorted(decides)} decide")
    missing = [name for name in network.HEAD if not hasattr(network, name)]
    _require(not missing, f"HEAD names {missing}, which it does not have")


@dataclass(frozen=True)
class _Runnable:
    """A network as an engine takes it, for one conversion that is kept nowhere."""

    network: nn.Module
    input_size: tuple[int, int, int, int]
    weights_sha256: str = ""
    identity: str = ""

    def load_network(self) -> nn.Module:
        """A copy."""
        return deepcopy(self.network)


def _runs_alike_in_openvino(case: NetworkCase) -> None:
    """OpenVINO, where it is installed, gives the logits of PyTorch to 1e-4."""
    if find_spec("openvino") is None:
        return
    from chestct.engines.openvino_engine import convert, import_openvino

    converted = convert(_Runnable(case.network, (1, *case.shape)))
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = import_openvino().Core().compile_model(converted, "CPU", hint)
    tensors = [part[:1].numpy() for part in case.batch()][: len(compiled.inputs)]
    difference = np.abs(compiled(tensors)[0] - case.logits[:1].numpy()).max()
    _require(difference <= _TOLERANCE, f"they differ by {difference:.2g}")


@dataclass(frozen=True, eq=False)
class RecipeCase:
    """A recipe, or a quicker form of it, by its name, and a chest in Hounsfield units."""

    name: str
    recipe: Recipe
    scan: Volume

    @cached_property
    def prepared(self) -> PreparedScan:
        """The scan as the recipe has it."""
        return prepare(self.scan, self.recipe)


def _gives_the_input_that_it_says(case: RecipeCase) -> None:
    """The input has the recipe's shape, is finite, and holds the lungs of a scan that is fit."""
    found, recipe = case.prepared, case.recipe
    wanted = (recipe.num_channels, *recipe.input_shape)
    _require(found.input.shape == wanted, f"the input is {found.input.shape}, not {wanted}")
    _require(np.isfinite(found.input).all(), "the input is not finite")
    _require(found.lungs.any(), "there is no lung in the input")
    _require(not found.unsuitable_reasons, f"unsuitable: {' '.join(found.unsuitable_reasons)}")


def _prepares_alike_and_changes_nothing(case: RecipeCase) -> None:
    """Preparing twice gives the same to the last bit and leaves the scan as it was."""
    before, first = hash_voxels(case.scan), case.prepared
    again = prepare(case.scan, case.recipe)
    _require(np.array_equal(first.input, again.input), "the inputs differ")
    _require(first.grid == again.grid, "the inputs lie elsewhere")
    _require(hash_voxels(case.scan) == before, "the scan was changed")


def _goes_into_a_card(case: RecipeCase) -> None:
    """It is called what its entry point is called, and comes back from a card as it was."""
    named = find_recipe(case.name)
    _require(named.name == case.name, f"its name is '{named.name}'")
    _require(recipe_from_dict(asdict(named)) == named, "what comes back is another one")


@dataclass(frozen=True)
class ReaderCase:
    """A reader and a scan that it takes: a file, or a folder of files.

    Another package's reader is called as the ending of its files.
    """

    name: str
    example: Path

    def changed(self, folder: Path, change: Callable[[bytes], bytes]) -> Path:
        """A copy in another folder with the bytes of every file changed; of JSON none."""
        copy = folder / self.example.name
        (shutil.copytree if self.example.is_dir() else shutil.copyfile)(self.example, copy)
        for path in [copy] if copy.is_file() else sorted(copy.iterdir()):
            if path.suffix != ".json":
                path.write_bytes(change(path.read_bytes()))
        return copy


def _reads_its_example(case: ReaderCase) -> None:
    """The example is taken for this format, and read alike twice."""
    found = format_of(case.example)
    _require(found == case.name, f"{case.example.name} is taken for {found}")
    volume, again = read_volume(case.example), read_volume(case.example)
    named = volume.source.format
    _require(named == case.name, f"the volume's source.format is '{named}'")
    _require(volume.unit in ("HU", "windowed"), f"its unit is '{volume.unit}'")
    _require(np.isfinite(volume.voxels).all(), "its voxels are not finite")
    same = volume.grid == again.grid and hash_voxels(volume) == hash_voxels(again)
    _require(same, "read again, it is another scan")


def _refuses_what_is_cut_short(case: ReaderCase) -> None:
    """A file of which a third is missing is refused with a ReadError."""
    _require_refusal(case, lambda data: data[: len(data) * 2 // 3])


def _refuses_a_foreign_file(case: ReaderCase) -> None:
    """A file of this ending with something else in it is refused with a ReadError."""
    _require_refusal(case, lambda data: b"no scan at all\n" * 40)


def _require_refusal(case: ReaderCase, change: Callable[[bytes], bytes]) -> None:
    with TemporaryDirectory() as folder:
        place = case.changed(Path(folder), change)
        try:
            read_volume(place)
        except ReadError:
            return
        except Exception as error:
            # Whatever the reader makes of it that is no refusal in words.
            said = f"it is answered with a {type(error).__name__} instead of a ReadError"
            raise ChestCTError(said) from error
    raise ChestCTError("it is read as if nothing were wrong")


@dataclass(frozen=True)
class WriterCase:
    """A writer's name and a classified scan, with its explanation."""

    name: str
    analysis: ScanAnalysis


def _writes_beside_the_others(case: WriterCase) -> None:
    """It writes what it says where it should, twice the same files, and changes nothing else."""
    before = hash_voxels(case.analysis.volume)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "results"
        first = _files_of(case, out)
        _require(first, "it writes no file")
        _require(_files_of(case, out) == first, "the second time it leaves other files")
    _require(hash_voxels(case.analysis.volume) == before, "it changes the scan")


def _goes_with_its_results(case: WriterCase) -> None:
    """What it wrote goes where results are replaced without it: it could contradict them."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "results"
        files = _files_of(case, out)
        write_outputs(case.analysis, out, WriteOptions(("json",)))
        left = [file.name for file in files if (out / file).exists()]
        _require(not left, f"{', '.join(left)} is still there")


def _files_of(case: WriterCase, out: Path) -> set[Path]:
    """All files that the writer leaves in a folder of results, relative to it."""
    written = write_outputs(case.analysis, out, WriteOptions(("json", case.name)))
    missing = {**written.failed, **written.skipped}
    _require(case.name in written.files, missing.get(case.name, "it was not run"))
    place = written.files[case.name]
    inside = [place] if place.is_file() else place.rglob("*")
    return {path.relative_to(out) for path in inside if path.is_file()}


@dataclass(frozen=True, eq=False)
class ExplanationCase:
    """An explanation's name, a classifier and a scan prepared for it."""

    method: str
    classifier: Classifier
    scan: PreparedScan

    @cached_property
    def before(self) -> tuple[dict[str, Tensor], bytes, bytes]:
        """Weights, input and lungs before anything was explained."""
        state = self.classifier.network.state_dict()
        weights = {name: value.clone() for name, value in state.items()}
        return weights, self.scan.input.tobytes(), self.scan.lungs.tobytes()

    @cached_property
    def explained(self) -> Explanation:
        """The map, made once."""
        _ = self.before
        return explain(self.classifier, self.scan, method=self.method)


def _fits_the_input(case: ExplanationCase) -> None:
    """The map has the input's shape, and runs from 0 to 1 or is empty."""
    found = case.explained
    _require(found.heat.shape == case.scan.lungs.shape, f"the map is {found.heat.shape}")
    _require(np.isfinite(found.heat).all(), "it is not finite")
    _require(found.heat.min() >= 0, f"its lowest value is {found.heat.min():g}")
    _require(found.has_evidence == (found.scale > 0), f"its scale is {found.scale:g}")
    highest = 1.0 if found.has_evidence else 0.0
    _require(found.heat.max() == highest, f"its largest value is {found.heat.max():g}")
    _require(min(found.cell) >= 1, f"its cells are {found.cell} voxels")


def _leaves_network_and_scan_alone(case: ExplanationCase) -> None:
    """Weights, modes, hooks, input and lungs are what they were."""
    _ = case.explained
    weights, values, lungs = case.before
    network = case.classifier.network
    state = network.state_dict()
    same = all(torch.equal(value, weights[name]) for name, value in state.items())
    _require(same, "weights were changed")
    parameters = list(network.parameters())
    _require(all(each.requires_grad for each in parameters), "a weight lost its gradient")
    _require(all(each.grad is None for each in parameters), "a gradient was left behind")
    modules = list(network.modules())
    _require(not any(module.training for module in modules), "it was left in training mode")
    _require(not any(module._forward_hooks for module in modules), "a hook was left behind")
    _require(case.scan.input.tobytes() == values, "the input was changed")
    _require(case.scan.lungs.tobytes() == lungs, "the lungs were changed")


def _explains_alike(case: ExplanationCase) -> None:
    """Asked again it gives the same map to the last bit."""
    first = case.explained
    again = explain(case.classifier, case.scan, method=case.method, label=first.label)
    _require(np.array_equal(first.heat, again.heat), "the maps differ")
    same = (first.label, first.scale, first.layer) == (again.label, again.scale, again.layer)
    _require(same, "label, scale or layer differ")


Promise: TypeAlias = Callable[[Any], None]

_NETWORK_PROMISES: Final[tuple[Promise, ...]] = (
    _gives_a_row_of_logits_per_scan,
    _learns_in_every_parameter,
    _answers_alike_and_changes_nothing,
    _comes_back_from_a_file,
    _runs_without_lungs,
    _refuses_unknown_settings,
    _decides_in_its_head,
    _runs_alike_in_openvino,
)

PROMISES: Final[dict[str, tuple[Promise, ...]]] = {
    "network": _NETWORK_PROMISES,
    "encoder": _NETWORK_PROMISES,
    "recipe": (
        _gives_the_input_that_it_says,
        _prepares_alike_and_changes_nothing,
        _goes_into_a_card,
    ),
    "reader": (_reads_its_example, _refuses_what_is_cut_short, _refuses_a_foreign_file),
    "writer": (_writes_beside_the_others, _goes_with_its_results),
    "explanation": (_fits_the_input, _leaves_network_and_scan_alone, _explains_alike),
}
"""Kind of entry, as in `lookup.GROUPS`, to what every entry of that kind promises."""


def case_of_patient(kind: str, name: str, folder: Path) -> object:
    """A recipe, writer or explanation to be tried on a simulated patient, written to `folder`."""
    from chestct.pipeline import analyse_scan
    from chestct.simulate import ThoraxSettings, simulate_patient, write_dicom_series

    settings = ThoraxSettings(rows=128, slice_spacing_mm=5.0)
    patient = simulate_patient(np.random.default_rng(5), settings, pattern="COVID-19")
    if kind == "recipe":
        return RecipeCase(name, find_recipe(name), patient.volume)
    write_dicom_series(patient.volume, folder / "patient")
    analysis = analyse_scan(folder / "patient", explain="auto" if kind == "writer" else None)
    if kind == "writer":
        return WriterCase(name, analysis)
    return ExplanationCase(name, load_classifier(), analysis.prepared)


def broken(promises: tuple[Promise, ...], case: object) -> Iterator[tuple[str, str]]:
    """What is promised, in words, and how each promise is broken: empty where it is kept."""
    for promise in promises:
        words = (promise.__doc__ or promise.__name__).strip().rstrip(".")
        try:
            promise(case)
        except ChestCTError as error:
            yield words, str(error)
        except Exception as error:
            # Whatever code of others does.
            yield words, f"{type(error).__name__}: {error}"
        else:
            yield words, ""
