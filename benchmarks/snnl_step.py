"""What the soft nearest neighbor loss adds to a training step: all hidden layers, temperature minimised per batch.

    python benchmarks/snnl_step.py [--rounds 15] [--minutes 10] [--out DIR]        four minutes on two idle cores
    python benchmarks/snnl_step.py --device cuda                                   ResNet-18 of the recipe cifar10

Every candidate trains a network of its own on the same batches of 256 images, the embedded digits enlarged; they take
turns, in a new order each round, and each round gives one ratio to the plain step. SNNL is taken of whole maps, as
published, and of averaged ones; `formula` is eq. 1 of whole maps in plain torch operators (log-sum-exp, autograd, T
fixed). On CPUs rounds beside which other processes worked do not count: a step on all cores waits for its slowest
thread; none begins while others work. Writes snnl_step_<machine>_<date> .json and .md.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from machine import describe_machine
from report import table
from result_files import write_results
from softkin.mass import Metric
from softkin_training.batches import balanced_batches
from softkin_training.config import load_recipe
from softkin_training.kept_memory import kept_memory
from softkin_training.losses import LayeredSnnl
from softkin_training.models import Classifier, build_model
from softkin_training.probe import Probe, choose_probe_rows
from softkin_training.rows import Rows
from softkin_training.step import LayerLosses, Step, make_optimizer
from softkin_training.train import tensor_cores

BATCH = 256
WARM_UP, CALLS = 3, {"cpu": 5, "cuda": 30}
"""Steps of a candidate per round: some untimed, then some timed together, as training takes them: nothing waits for a
GPU between them."""
QUIET = 0.03
"""Share of the cores' time that other processes may take in a round that counts."""
RATE = 1e-3
TARGETS = {"cpu": 1.35, "cuda": 1.1}
PLAIN = "plain step"
MEANS = 2
"""Rows and columns that maps are averaged down to: `loss.max_side`."""
EPOCH_ROWS = 54_000
"""Of Fashion-MNIST, less the calibration rows: what the probe's cost is set against."""
GREY, COLOUR = (28, 28), (32, 32, 3)
ALL = ['loss.layers=["conv1", "conv2", "dense"]']
STAGES = ["layer1", "layer2", "layer3", "layer4"]
NETWORKS: dict[str, dict[str, tuple[str, list[str], tuple[int, ...]]]] = {
    "cpu": {
        "CNN 16, 32, dense 64": ("fashion_mnist", [*ALL, "model.channels=[16, 32]", "model.dense=64"], GREY),
        "CNN 32, 64, dense 256 (recipes mnist, fashion_mnist)": ("fashion_mnist", ALL, GREY),
    },
    "cuda": {
        "ResNet-18, the first three stages": ("cifar10", [f"loss.layers={STAGES[:3]}"], COLOUR),
        "ResNet-18, all four stages": ("cifar10", [f"loss.layers={STAGES}"], COLOUR),
    },
}
"""By device, for each title: recipe, what to change in it, and the shape of an image."""


def main() -> None:
    """Run, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of every candidate, undisturbed ones")
    parser.add_argument("--minutes", type=float, default=10, help="for each network, at most")
    parser.add_argument("--device", default="cpu", choices=tuple(NETWORKS), help="where to train")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = arguments.device
    results: dict[str, Any] = {"machine": describe_machine(device), "threads": torch.get_num_threads()}
    with tensor_cores(torch.device(device)), kept_memory():
        results["networks"] = {
            name: measure(*chosen, device, arguments.rounds, 60 * arguments.minutes)
            for name, chosen in NETWORKS[device].items()
        }
    write_results("snnl_step", results, markdown(results), arguments.out)


def measure(
    recipe_name: str, settings: list[str], shape: tuple[int, ...], device: str, rounds: int, seconds: float
) -> dict[str, Any]:
    """Medians of every candidate on one network, and of the ratios within a round.

    Args:
        recipe_name: whose network; its SNNL is on the recipe's layers, or on all hidden ones where it names none.
        settings: of the recipe.
        shape: of an image.
        device: where to train.
        rounds: undisturbed ones.
        seconds: begin no further round after that long.
    """
    x, y = (t.to(device) for t in digit_images(shape))
    recipe = load_recipe(recipe_name, settings)
    mean, std = x.float().mean().cpu(), x.float().std().cpu()

    def network() -> Classifier:
        torch.manual_seed(0)
        return build_model(recipe.model, shape, 10, mean, std).to(device)

    layers = recipe.loss.layers or network().hidden_layers
    on_cpu, calls = device == "cpu", CALLS[device]
    candidates = {PLAIN: Trainer(network(), None, x, y)}
    for metric in get_args(Metric):
        for name, max_side in {"SNNL": 0, f"SNNL of {MEANS} x {MEANS} means": MEANS}.items():
            loss = LayeredSnnl(layers, metric=metric, max_side=max_side).to(device)
            candidates[f"{name}, {metric}"] = Trainer(network(), loss, x, y)
        candidates[f"formula, {metric}"] = Trainer(network(), Formula(layers, metric), x, y)
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    names, others, disturbed, end = list(candidates), Others(), 0, time.perf_counter() + seconds
    while len(wall[PLAIN]) < rounds and time.perf_counter() < end:
        if on_cpu and not others.are_quiet():
            continue
        times_of: dict[str, NDArray[np.float64]] = {}
        for j in np.random.default_rng(disturbed + len(wall[PLAIN])).permutation(len(names)):
            step = candidates[names[j]]
            for _ in range(WARM_UP):
                step()
            step.wait()
            started = time.perf_counter(), time.process_time()
            for _ in range(calls):
                step()
            step.wait()
            times_of[names[j]] = np.subtract((time.perf_counter(), time.process_time()), started) / calls
        if on_cpu and others.share() > QUIET:
            disturbed += 1
            continue
        for name, (seconds_passed, seconds_worked) in times_of.items():
            wall[name].append(float(seconds_passed))
            cpu[name].append(float(seconds_worked))
    if not wall[PLAIN]:
        raise SystemExit(f"other processes never rested for a round ({disturbed} were disturbed): try an idle machine")
    return {
        "layer_widths": widths(network(), x),
        "rounds": len(wall[PLAIN]),
        "disturbed_rounds": disturbed,
        "candidates": {name: _compare(name, wall, cpu) for name in names},
        "probe": probe_cost(network(), x, y, float(np.median(wall[PLAIN]))),
    }


def _compare(name: str, wall: dict[str, list[float]], cpu: dict[str, list[float]]) -> dict[str, Any]:
    ratios = np.divide(wall[name], wall[PLAIN])
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    found = {
        "milliseconds": round(1e3 * float(np.median(wall[name])), 2),
        "ratio": round(float(median), 3),
        "quartiles": [round(float(low), 3), round(float(high), 3)],
        "cpu_ratio": round(float(np.median(np.divide(cpu[name], cpu[PLAIN]))), 3),
    }
    print(f"  {name:<32} {found['milliseconds']:>8.2f} ms  {found['ratio']:.3f}", flush=True)
    return found


class Others:
    """What other processes do meanwhile."""

    def __init__(self) -> None:
        self._last = self._now()

    def share(self) -> float:
        """Part of all cores' time that they took since the last call."""
        passed, busy, own = np.subtract(now := self._now(), self._last)
        self._last = now
        return float(max(0.0, busy - own) / (passed * (os.cpu_count() or 1)))

    def are_quiet(self) -> bool:
        """Whether they rest now: looks on for a second."""
        self.share()
        time.sleep(1)
        return self.share() < QUIET

    @staticmethod
    def _now() -> tuple[float, float, float]:
        user, nice, system = (int(n) for n in Path("/proc/stat").read_text().split()[1:4])
        return time.perf_counter(), (user + nice + system) / os.sysconf("SC_CLK_TCK"), time.process_time()


class Trainer:
    """The step of the training loop, on one batch after the other."""

    def __init__(self, model: Classifier, loss: LayerLosses | None, x: Tensor, y: Tensor) -> None:
        fabric = Fabric(accelerator=x.device.type, devices=1)
        self.x, self.y, self.batch_of_step = x, y, itertools.count()
        batches = balanced_batches(y.cpu(), BATCH, torch.Generator().manual_seed(0))
        self.batches = [batch[:BATCH].to(x.device) for batch in batches]
        trained, optimizer = fabric.setup(model.train(), make_optimizer(model, x.device, 1e-2))
        trained.mark_forward_method("forward_with_hidden")
        weights = dict.fromkeys(model.hidden_layers, -0.1)
        self.step = Step(fabric, trained, optimizer, loss or (lambda hidden, y: {}), weights, recorded=True)

    def __call__(self) -> None:
        """Take one step."""
        batch = self.batches[next(self.batch_of_step) % len(self.batches)]
        self.numbers = self.step(self.x[batch], self.y[batch], len(batch), RATE)

    def wait(self) -> None:
        """Wait for the device, and look at what the last step came to."""
        if not bool(torch.isfinite(self.numbers).all()):
            raise SystemExit("a candidate diverged; its times mean nothing")


class Formula:
    """Eq. 1 as one would write it down, at a fixed temperature of a quarter of the first batch's mean distance."""

    def __init__(self, layers: Iterable[str], metric: str) -> None:
        self.layers, self.metric = tuple(layers), metric
        self.temperatures: dict[str, float] = {}

    def __call__(self, hidden: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """The loss of each layer."""
        itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
        apart = (y.unsqueeze(0) != y.unsqueeze(1)) | itself
        losses = {}
        for layer in self.layers:
            z = hidden[layer].flatten(1)
            if self.metric == "cosine":
                unit = nn.functional.normalize(z)
                distances = 1 - unit @ unit.T
            else:
                square = z.square().sum(dim=1)
                distances = square.unsqueeze(0) + square.unsqueeze(1) - 2 * z @ z.T
            if layer not in self.temperatures:  # once: a number that is read makes a GPU's stream wait
                self.temperatures[layer] = float(distances.detach().mean()) / 4
            logits = (-distances / self.temperatures[layer]).masked_fill(itself, -math.inf)
            losses[layer] = (logits.logsumexp(1) - logits.masked_fill(apart, -math.inf).logsumexp(1)).mean()
        return losses


def probe_cost(model: Classifier, x: Tensor, y: Tensor, step_seconds: float) -> dict[str, float]:
    """Seconds of one measurement of the probe, and their share of a plain epoch."""
    rows = Rows(x.cpu().numpy(), y.cpu().numpy(), np.arange(len(y)))
    probe = Probe(choose_probe_rows(rows, 512, seed=0), "cosine")
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        probe.measure(model)
        seconds.append(time.perf_counter() - started)
    median = float(np.median(seconds[1:]))
    return {"seconds": round(median, 3), "share_of_epoch": round(median / (step_seconds * EPOCH_ROWS / BATCH), 4)}


def digit_images(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """uint8 images `[n, *shape]` and labels: scikit-learn's digits, enlarged, the same in every colour."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images * (255 / 16)).float().unsqueeze(1)
    x = nn.functional.interpolate(small, size=shape[:2], mode="bilinear").squeeze(1).round().to(torch.uint8)
    if len(shape) == 3:
        x = x.unsqueeze(3).expand(-1, *shape).contiguous()
    return x, torch.from_numpy(bunch.target.astype(np.int64))


def widths(model: Classifier, x: Tensor) -> dict[str, int]:
    """Activations of one row, per layer."""
    return {name: z[0].numel() for name, z in model.forward_with_hidden(x[:2])[1].items()}


def markdown(results: dict[str, Any]) -> Iterable[str]:
    """The report."""
    m = results["machine"]
    yield f"# Training step with SNNL on all hidden layers, {m['date']}"
    yield ""
    torch_version, threads = m["versions"]["torch"], results["threads"]
    yield f"{m['processor']}, {m['cores']} cores; torch {torch_version} with {threads} threads."
    if m["gpu"]:
        yield f"GPU: {m['gpu']}; convolutions and products may use TF32, and steps are CUDA graphs, as in training."
    yield f"Batch {BATCH}; SNNL: temperature minimised per batch. Median over rounds of the ratio within a round, with"
    yield f"quartiles; target: at most {TARGETS[m['device']]}. `formula`: eq. 1 in plain torch operators, T fixed."
    for name, network in results["networks"].items():
        yield ""
        yield f"## {name}"
        yield ""
        yield "Layer widths: " + ", ".join(f"{layer} {width}" for layer, width in network["layer_widths"].items()) + "."
        rounds, disturbed = network["rounds"], network["disturbed_rounds"]
        yield f"{rounds} rounds; {disturbed} more do not count, because other processes worked beside them."
        rows = [
            [
                n,
                f"{c['milliseconds']:.1f}",
                f"{c['ratio']:.2f}",
                "{:.2f} to {:.2f}".format(*c["quartiles"]),
                c["cpu_ratio"],
            ]
            for n, c in network["candidates"].items()
        ]
        yield from table(["candidate", "ms", "over plain", "quartiles", "CPU time over plain"], rows)
        probe = network["probe"]
        yield ""
        share = f"{probe['share_of_epoch']:.1%} of a plain epoch of {EPOCH_ROWS:,} rows"
        yield f"The probe of 512 rows takes {probe['seconds']:.2f} s each epoch, {share}."


if __name__ == "__main__":
    main()
