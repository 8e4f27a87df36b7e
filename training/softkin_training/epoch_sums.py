"""Running means of one epoch over all processes, and the refusal of a loss that is not finite."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softkin.errors import DataError
from softkin_training.processes import summed


class EpochSums:
    """Sums over the rows of an epoch, the same in every process.

    A batch is read, and refused, when it is settled: at once, or with the next batch. A GPU that had to be waited for
    in every batch would stand idle while Python prepares what comes next.

    Args:
        weights: SNNL layer -> its weight in the objective.
        epoch: which, for messages.
        checkpoint: where the last good weights are kept, for messages.
        wait: settle every batch at once.
    """

    def __init__(self, weights: Mapping[str, float], epoch: int, checkpoint: Path, *, wait: bool) -> None:
        self.weights, self.epoch, self.checkpoint, self.wait = dict(weights), epoch, checkpoint, wait
        self.rows = self.correct = 0
        self.cross_entropy = 0.0
        self.snnl = dict.fromkeys(weights, 0.0)
        self._pending: _Batch | None = None

    def add(self, step: int, numbers: Tensor, num_rows: int) -> None:
        """Add a batch; for all processes together.

        Args:
            step: of the training, for messages.
            numbers: of this process, see `Step`; the first two become sums over all processes.
            num_rows: of the whole batch.

        Raises:
            DataError: see `settle`.
        """
        self.settle()
        summed(numbers[:2])
        self._pending = _Batch(step, num_rows, numbers)
        if self.wait:
            self.settle()

    def settle(self) -> None:
        """Read the last batch, and stop where a term of it is NaN or infinite.

        Raises:
            DataError: in every process; says which term, of which layer, and where.
        """
        if self._pending is None:
            return
        batch, self._pending = self._pending, None
        cross_entropy, hits, *losses = batch.numbers()
        snnl = dict(zip(self.snnl, losses, strict=True))
        for what, value in {"cross-entropy": cross_entropy, **{f"SNNL of {k}": v for k, v in snnl.items()}}.items():
            if not math.isfinite(value):
                raise DataError(
                    f"{what} is {value} in epoch {self.epoch}, step {batch.step}; {_kept(self.checkpoint)}. Lower "
                    "training.learning_rate, the size of loss.weight or, for a learned temperature, "
                    "loss.temperature_step"
                )
        self.rows += batch.num_rows
        self.correct += int(hits)
        self.cross_entropy += cross_entropy * batch.num_rows
        for layer, value in snnl.items():
            self.snnl[layer] += value * batch.num_rows

    def means(self) -> dict[str, Any]:
        """Per row, for history.jsonl."""
        snnl = {layer: total / self.rows for layer, total in self.snnl.items()}
        cross_entropy = self.cross_entropy / self.rows
        return {
            "loss": cross_entropy + sum(self.weights[layer] * value for layer, value in snnl.items()),
            "ce": cross_entropy,
            "snnl": snnl,
            "train_accuracy": self.correct / self.rows,
        }

    def note(self) -> str:
        """For the progress bar."""
        if self.rows == 0:
            return ""
        means = self.means()
        layers = "".join(f" {layer} {value:.3f}" for layer, value in means["snnl"].items())
        return f"loss {means['loss']:.3f} acc {means['train_accuracy']:.3f}{' | SNNL' if layers else ''}{layers}"


class _Batch:
    """What a batch came to, on its way to the host."""

    def __init__(self, step: int, num_rows: int, numbers: Tensor) -> None:
        self.step, self.num_rows = step, num_rows
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record()

    def numbers(self) -> list[float]:
        """Waits for the device, if it must."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()


def non_finite(model: nn.Module) -> frozenset[str]:
    """Names of weights and buffers that hold NaN or infinity."""
    return frozenset(n for n, value in model.state_dict().items() if not bool(torch.isfinite(value).all()))


def refuse_non_finite_weights(model: nn.Module, epoch: int, checkpoint: Path, meant: Collection[str] = ()) -> None:
    """Stop before weights that the last step made NaN or infinite replace the last good ones.

    Args:
        model: after an epoch.
        epoch: which, for messages.
        checkpoint: where the last good weights are kept, for messages.
        meant: tensors that were not finite before training, as a mask for attention is not.

    Raises:
        DataError: says which tensor.
    """
    found = non_finite(model)
    for name in model.state_dict():
        if name in found and name not in meant:
            raise DataError(
                f"{name} is not finite after epoch {epoch}; {_kept(checkpoint)}. Lower training.learning_rate, or the "
                "size of loss.weight"
            )


def _kept(checkpoint: Path) -> str:
    return f"the checkpoint in {checkpoint} is kept" if checkpoint.exists() else "no checkpoint was written yet"
