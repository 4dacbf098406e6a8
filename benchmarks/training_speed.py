"""What a training step costs: layout, precision, recomputing and compiling, on a CPU or a GPU.

    python benchmarks/training_speed.py [--device cuda] [--network maseres] [--size 128] [--batch 2]
        [--set width=16] [--repeats 5] [--compile] [--layouts] [--augment]

Every form runs alternately in this one process, each with a network of its own and the same drawn
weights; medians are reported, on a CPU of processor time, summed over its threads, so that a busy
machine does not count, and on a GPU of time with the most memory. A step is forward, loss, backward
and Adam on a batch that is there already: reading and augmentation are not in it. `--layouts`
measures only both memory formats in both precisions, on which `MEMORY_FORMAT` of
`chestct.training.distributed` rests. `--augment` measures a step in both precisions beside what the
`recommended` augmentation of its batch takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
import yaml
from measuring import in_turns, run
from torch import nn

from chestct.datasets.augment import AUGMENTATIONS, vary_batch
from chestct.networks import NETWORKS, build_network
from chestct.training.distributed import MEMORY_FORMAT, tuned_for
from chestct.training.run import recomputing


@dataclass(frozen=True)
class Form:
    """One way to run a step."""

    name: str
    precision: str = "float32"
    is_channels_last: bool = True
    is_recomputing: bool = False
    is_compiled: bool = False


FORMS = (
    Form("float32, plain layout", is_channels_last=False),
    Form("float32"),
    Form("bf16, plain layout", "bf16", is_channels_last=False),
    Form("bf16", "bf16"),
    Form("float32, recomputing", is_recomputing=True),
    Form("bf16, recomputing", "bf16", is_recomputing=True),
)
LAYOUTS = FORMS[:4]
AUGMENTED = (Form("float32"), Form("bf16", "bf16"))
AUGMENTATION = Form("augmentation of a batch")
COMPILED = (
    Form("float32, compiled", is_compiled=True),
    Form("bf16, compiled", "bf16", is_compiled=True),
)


@dataclass(frozen=True)
class Work:
    """What is trained on what."""

    network: str
    size: int
    batch: int
    device: torch.device
    settings: tuple[str, ...] = ()

    def build(self) -> nn.Module:
        """The network with always the same weights."""
        torch.manual_seed(0)
        has_shape = self.network in ("maseres", "alexnet3d", "voxcnn")
        settings: dict[str, object] = {"input_shape": [self.size] * 3} if has_shape else {}
        for each in self.settings:
            name, _, value = each.partition("=")
            settings[name] = yaml.safe_load(value)
        return build_network(self.network, 1, 3, settings).to(self.device).train()

    def step(self, form: Form, stack: ExitStack) -> Callable[[], float]:
        """A function that does one step and returns its loss."""
        network = self.build()
        if form.is_recomputing:
            stack.enter_context(recomputing(network))
        layout = MEMORY_FORMAT if form.is_channels_last else torch.contiguous_format
        network.to(memory_format=layout)
        called = torch.compile(network) if form.is_compiled else network
        optimizer = torch.optim.Adam(network.parameters(), 1e-4)
        shape = (self.batch, 1, self.size, self.size, self.size)
        scans, lungs = torch.rand(shape, device=self.device), torch.ones(shape, device=self.device)
        scans = scans.contiguous(memory_format=layout)
        targets = torch.arange(self.batch, device=self.device) % 3
        kind, is_mixed = self.device.type, form.precision == "bf16"

        def run() -> float:
            with torch.autocast(kind, torch.bfloat16, enabled=is_mixed):
                logits = called(scans, lungs)
            loss = nn.functional.cross_entropy(logits.float(), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return float(loss.detach())

        return run

    def augmenting(self) -> Callable[[], float]:
        """A function that varies one batch."""
        shape = (self.batch, 1, self.size, self.size, self.size)
        scans, lungs = torch.rand(shape, device=self.device), torch.ones(shape, device=self.device)
        generator = torch.Generator().manual_seed(0)
        settings = AUGMENTATIONS["recommended"]

        def run() -> float:
            return float(vary_batch(scans, lungs, settings, generator)[0][0, 0, 0, 0, 0])

        return run


def measure(work: Work, forms: tuple[Form, ...], repeats: int) -> None:
    """Run every form in turns and print medians, on a GPU with the most memory it held."""
    is_gpu, memory = work.device.type == "cuda", dict.fromkeys(forms, "")

    def watched(form: Form, step: Callable[[], float]) -> None:
        """One step, and what the GPU held at most."""
        if is_gpu:
            torch.cuda.reset_peak_memory_stats(work.device)
        step()
        if is_gpu:
            held = torch.cuda.max_memory_allocated(work.device) / 2**30
            memory[form] = f", {held:.1f} GiB with all others' weights"

    with ExitStack() as stack, tuned_for(work.device):
        steps = {
            form: work.augmenting() if form is AUGMENTATION else work.step(form, stack)
            for form in forms
        }
        works = {form: partial(watched, form, step) for form, step in steps.items()}
        costs = in_turns(works, repeats)
    spent = {form: cost.clock_s if is_gpu else cost.processor_s for form, cost in costs.items()}
    for form, seconds in spent.items():
        print(
            f"{form.name}: {seconds * 1000:.1f} ms a step, {seconds / spent[forms[0]]:.2f} of the "
            f"first{memory[form]}"
        )


def main() -> None:
    """Measure one network on one device."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="maseres")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument("--compile", action="store_true", help="add the compiled forms")
    parser.add_argument("--layouts", action="store_true", help="only layout by precision")
    parser.add_argument("--augment", action="store_true", help="only a step beside augmentation")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    work = Work(chosen.network, chosen.size, chosen.batch, device, tuple(chosen.settings))
    print(
        f"{work.network}{' with ' if work.settings else ''}{', '.join(work.settings)}, "
        f"batch {work.batch}, {work.size}^3 on {work.device}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    forms = LAYOUTS if chosen.layouts else FORMS + (COMPILED if chosen.compile else ())
    if chosen.augment:
        forms = (*AUGMENTED, AUGMENTATION)
    measure(work, forms, chosen.repeats)


if __name__ == "__main__":
    run(main)
