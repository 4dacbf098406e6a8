"""Networks and engines: parameters, what gating costs, OpenVINO against plain PyTorch float32.

    python benchmarks/networks.py [--size 224] [--repeats 5] [--skip-101]

Everything that is compared runs alternately in this one process, and medians are reported, so that
a busy machine disturbs both sides alike. Weights are drawn: time does not depend on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from measuring import in_turns, run
from torch import nn

from chestct.engines import make_engine
from chestct.engines.openvino_engine import computes_in_bf16, import_openvino
from chestct.networks import build_network

TOTALS = {"roi_resnet18": 33_424_195, "roi_resnet50": 47_205_699, "roi_resnet101": 86_251_843}
GATING_GOAL = 1.03
OPENVINO_GOALS = {"roi_resnet18": 0.25, "roi_resnet101": 0.15}


@dataclass(frozen=True)
class DrawnNetwork:
    """A network with drawn weights, as an engine wants it. Its converted form is cached."""

    name: str
    size: int

    @property
    def input_size(self) -> tuple[int, int, int, int]:
        """One channel of a cube."""
        return 1, self.size, self.size, self.size

    @property
    def weights_sha256(self) -> str:
        """Stands for the drawn weights, which are always the same."""
        return f"drawn with seed 0 by torch {torch.__version__}"

    @property
    def identity(self) -> str:
        """Name of the network, its settings being the defaults."""
        return f"benchmark {self.name}"

    def load_network(self) -> nn.Module:
        """Draw the weights."""
        torch.manual_seed(0)
        return build_network(self.name, 1, 3).eval()


def scan(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A cube of drawn values with two boxes of lungs."""
    values = np.random.default_rng(0).random((1, size, size, size), dtype=np.float32)
    lungs = np.zeros((size, size, size), dtype=bool)
    edge = size // 8
    lungs[edge:-edge, edge:-edge, edge : size // 2 - edge // 2] = True
    lungs[edge:-edge, edge:-edge, size // 2 + edge // 2 : -edge] = True
    return values, lungs


def report_parameters() -> None:
    """Totals against those of the layout."""
    for name, expected in TOTALS.items():
        with torch.device("meta"):
            network = build_network(name, 1, 3)
        found = sum(parameter.numel() for parameter in network.parameters())
        print(f"{name}: {found:,} parameters, expected {expected:,}")


def report_gating(size: int, repeats: int) -> None:
    """Time of a forward pass of ResNet-18 with each gating over that without."""
    values, lungs = scan(size)
    batch = torch.from_numpy(values)[None]
    mask = torch.from_numpy(lungs)[None, None].float()
    runs: dict[str, Callable[[], object]] = {}
    for gating in ("none", "figure", "text", "all", "published"):
        torch.manual_seed(0)
        network = build_network("roi_resnet18", 1, 3, {"gating": gating}).eval()
        runs[gating] = lambda network=network: network(batch, mask)
    with torch.inference_mode():
        spent = in_turns(runs, repeats)
    for gating in list(runs)[1:]:
        taken_s = spent[gating].clock_s
        ratio = taken_s / spent["none"].clock_s
        print(f"gating {gating}: {taken_s:.3f} s, {ratio:.3f} of none (goal {GATING_GOAL})")


def report_engines(name: str, size: int, repeats: int) -> None:
    """Time of OpenVINO, and of our channels-last PyTorch, over plain PyTorch float32."""
    values, lungs = scan(size)
    model = DrawnNetwork(name, size)
    plain = model.load_network()
    batch = torch.from_numpy(values)[None]
    mask = torch.from_numpy(lungs)[None, None].float()

    def run_plain() -> object:
        with torch.inference_mode():
            return plain(batch, mask)

    has_bf16 = computes_in_bf16(import_openvino().Core(), "CPU")
    engines = [make_engine(model, "torch", precision="float32")]
    engines += [make_engine(model, "openvino", precision="float32")]
    engines += [make_engine(model, "openvino", precision="bf16")] if has_bf16 else []
    runs = {e.name: (lambda e=e: e.logits(values, lungs)) for e in engines}
    spent = in_turns({"plain torch float32": run_plain, **runs}, repeats)
    reference = spent["plain torch float32"].clock_s
    print(f"{name} at {size}^3: plain torch float32 {reference:.2f} s")
    for engine_name in runs:
        goal = OPENVINO_GOALS.get(name) if engine_name == "openvino bf16" else None
        wanted = f" (goal {goal} on a processor with AMX)" if goal else ""
        taken_s = spent[engine_name].clock_s
        ratio = taken_s / reference
        print(f"{name} at {size}^3: {engine_name} {taken_s:.2f} s, {ratio:.3f}{wanted}")


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=224, help="edge of the input in voxels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-101", action="store_true", help="leave the heaviest network out")
    options = parser.parse_args()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {capability}")
    report_parameters()
    report_gating(options.size, options.repeats)
    report_engines("roi_resnet18", options.size, options.repeats)
    if not options.skip_101:
        report_engines("roi_resnet101", options.size, max(1, options.repeats // 3))


if __name__ == "__main__":
    run(main)
