"""Running means of one epoch over all processes, and the refusal of a loss that is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softkin.errors import DataError
from softkin_training.processes import summed


class EpochSums:
    """Sums over the rows of an epoch, the same in every process.

    Args:
        weights: SNNL layer -> its weight in the objective.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)
        self.rows = self.correct = 0
        self.cross_entropy = 0.0
        self.snnl = dict.fromkeys(weights, 0.0)

    def add(self, share: Tensor, snnl: Mapping[str, Tensor], logits: Tensor, y: Tensor, num_rows: int) -> None:
        """Add a batch; for all processes together.

        Args:
            share: this process's part of the batch's cross-entropy.
            snnl: layer -> loss of the whole batch.
            logits: `[b, K]` of this process's rows.
            y: `[b]` their labels.
            num_rows: of the whole batch.
        """
        correct = (logits.argmax(dim=1) == y).sum()
        own = summed(torch.stack([share.detach().double(), correct.double()]))
        layers = [value.detach().double().reshape(1) for value in snnl.values()]
        cross_entropy, hits, *losses = torch.cat([own, *layers]).tolist()  # one wait for the device
        self.last = {"cross-entropy": cross_entropy, **{f"SNNL of {k}": v for k, v in zip(snnl, losses, strict=True)}}
        self.rows += num_rows
        self.correct += int(hits)
        self.cross_entropy += cross_entropy * num_rows
        for layer, value in zip(snnl, losses, strict=True):
            self.snnl[layer] += value * num_rows

    def refuse_non_finite(self, epoch: int, step: int, checkpoint: Path) -> None:
        """Stop where a term of the last batch is NaN or infinite.

        Raises:
            DataError: in every process; says which term, of which layer, and where.
        """
        for what, value in self.last.items():
            if not math.isfinite(value):
                raise DataError(
                    f"{what} is {value} in epoch {epoch}, step {step}; {_kept(checkpoint)}. Lower "
                    "training.learning_rate, the size of loss.weight or, for a learned temperature, "
                    "loss.temperature_step"
                )

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
        means = self.means()
        layers = "".join(f" {layer} {value:.3f}" for layer, value in means["snnl"].items())
        return f"loss {means['loss']:.3f} acc {means['train_accuracy']:.3f}{' | SNNL' if layers else ''}{layers}"


def refuse_non_finite_weights(model: nn.Module, epoch: int, checkpoint: Path) -> None:
    """Stop before weights that the last step made NaN or infinite replace the last good ones.

    Raises:
        DataError: says which tensor.
    """
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise DataError(
                f"{name} is not finite after epoch {epoch}; {_kept(checkpoint)}. Lower training.learning_rate, or the "
                "size of loss.weight"
            )


def _kept(checkpoint: Path) -> str:
    return f"the checkpoint in {checkpoint} is kept" if checkpoint.exists() else "no checkpoint was written yet"
