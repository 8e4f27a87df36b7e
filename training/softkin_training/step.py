"""One step of training, from a batch to changed weights; on a GPU a replay of what was recorded, where that is safe.

    objective = cross-entropy + sum over layers l of weight_l * SNNL_l        (Frosst et al. 2019, eq. 3)

`losses` has the second term.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from softkin_training.cuda_graph import Replayed
from softkin_training.processes import num_processes

LayerLosses = Callable[[Mapping[str, Tensor], Tensor], Mapping[str, Tensor]]
"""Hidden activations and labels of a batch to the loss of each layer, as `losses.LayeredSnnl`."""


class Step:
    """One optimiser step: cross-entropy and SNNL of a batch, their gradients, and the change of the weights.

    Args:
        fabric: knows device, precision and processes.
        model: as `fabric.setup` returns it, with `forward_with_hidden`.
        optimizer: from `make_optimizer`, as `fabric.setup` returns it.
        snnl: the losses of hidden layers.
        weights: layer -> its weight in the objective.
        recorded: record one CUDA graph per batch size and replay it, see `Replayed`: to launch some sixty kernels takes
            Python as long as they take the GPU. Allowed only in one process, for a network that does the same in every
            call and never waits for the GPU, and in a precision that does not scale the loss. No effect on a CPU.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        snnl: LayerLosses,
        weights: Mapping[str, float],
        *,
        recorded: bool,
    ) -> None:
        self._optimizer, self._recorded = optimizer, recorded and fabric.device.type == "cuda"
        self._rate = torch.zeros((), device=fabric.device)  # in memory that a graph reads
        # No method of this object: a cycle would keep the model, and with it gloo's threads, to the interpreter's end.
        self._take = _Take(fabric, model, optimizer, snnl, dict(weights))
        self._replayed = Replayed(self._take.whole)

    def __call__(self, x: Tensor, y: Tensor, num_rows: int, rate: float) -> Tensor:
        """Take one step.

        Args:
            x: `[b, ...]` raw rows of this process.
            y: `[b]` their labels.
            num_rows: of the whole batch, over all processes.
            rate: the learning rate.

        Returns:
            `[2 + layers]` float64, on the device, which is not waited for: this process's part of the batch's mean
            cross-entropy, its number of correct predictions, and each layer's loss of the whole batch.
        """
        if self._recorded:
            self._rate.fill_(rate)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate if self._recorded else rate
        return self._replayed(x, y)[0] if self._recorded else self._take(x, y, num_rows)


@dataclass(frozen=True)
class _Take:
    fabric: Fabric
    model: nn.Module
    optimizer: torch.optim.Optimizer
    snnl: LayerLosses
    weights: Mapping[str, float]

    @torch.enable_grad()
    def __call__(self, x: Tensor, y: Tensor, num_rows: int) -> Tensor:
        self.optimizer.zero_grad()
        logits, hidden = self.model.forward_with_hidden(x)  # type: ignore[operator]
        share = nn.functional.cross_entropy(logits, y, reduction="sum") / num_rows
        losses = self.snnl(hidden, y)
        objective = share * num_processes()  # gradients are averaged over processes, shares add up
        for layer, value in losses.items():
            objective = objective + self.weights[layer] * value
        self.fabric.backward(objective)
        self.optimizer.step()
        hits = (logits.argmax(dim=1) == y).sum()
        return torch.stack([n.detach().double() for n in (share, hits, *losses.values())])

    def whole(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Take the step of a batch that no other process shares."""
        return (self(x, y, len(y)),)


def make_optimizer(model: nn.Module, device: torch.device, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, whose rate each step brings; on a GPU one kernel (`fused`) that a CUDA graph may record (`capturable`)."""
    on_gpu = device.type == "cuda"
    return torch.optim.AdamW(model.parameters(), weight_decay=weight_decay, fused=on_gpu or None, capturable=on_gpu)
