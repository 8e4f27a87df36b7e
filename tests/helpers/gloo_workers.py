"""What processes of a gloo group do in tests; of a module, because they start anew."""

from __future__ import annotations

import pickle

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from snnl_reference import METRICS, batch
from softkin_training.losses import LayeredSnnl
from softkin_training.processes import Gathering, on_first, stacked, summed
from softkin_training.train import _train
from warm_processes import START

MODES = {
    "minimized": {},
    "fixed": {"fixed_temperature": 0.7},
    "learned": {"initial_temperature": 0.9},
}
BATCHES = 4
SHARES = ((5, 9), (0, 14), (7, 7), (13, 1))
"""Rows of each process, per batch."""


def network():
    """A small network in float64 with two hidden layers, the same in every process."""
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"first": torch.nn.Linear(6, 8), "second": torch.nn.Linear(8, 4)}).double()


def steps(mode, metric, shares=None, rank=0):
    """Losses, temperatures and the averaged gradients of a few batches, of this process's share of them."""
    model = network()
    snnl = LayeredSnnl(["first", "second"], metric=metric, temperature=mode, **MODES[mode])
    found = []
    for number in range(BATCHES):
        x, y = batch(14, 6, 3, seed=number)
        start = 0 if shares is None else sum(shares[number][:rank])
        stop = 14 if shares is None else start + shares[number][rank]
        first = model["first"](x[start:stop]).tanh()
        second = model["second"](first)
        losses = snnl({"first": first, "second": second}, y[start:stop])
        model.zero_grad()
        (losses["first"] - 0.5 * losses["second"] * (number + 1)).backward()
        gradients = [p.grad for p in model.parameters()]
        if shares is not None:
            gradients = [summed(g) / len(shares[number]) for g in gradients]  # as DistributedDataParallel does
        found.append(([float(v.detach()) for v in losses.values()], list(snnl.temperatures().values()), gradients))
    return found


def _work(rank, world, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {(mode, metric): steps(mode, metric, SHARES, rank) for mode in MODES for metric in METRICS}
    gathered = Gathering.of(torch.zeros(rank + 1))(torch.full((rank + 1, 2), float(rank)))
    made = on_first(lambda: f"made by {rank}")
    out.joinpath(f"{rank}.pickle").write_bytes(
        pickle.dumps((found, gathered, made, stacked(torch.tensor([rank]), torch.device("cpu"))))
    )
    dist.destroy_process_group()


def in_two_processes(folder):
    """What each of two processes found."""
    mp.start_processes(_work, args=(2, folder / "store", folder), nprocs=2, start_method=START)
    return [pickle.loads(folder.joinpath(f"{rank}.pickle").read_bytes()) for rank in range(2)]


def train_in_turn(fabric, runs):
    """Trainings, each `(recipe, dataset, folder)`, in the processes of one start, which takes longer than they do."""
    for recipe, dataset, folder in runs:
        _train(fabric, recipe, dataset, folder, False, False)
