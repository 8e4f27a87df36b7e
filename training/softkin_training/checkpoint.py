"""The state of a training run on disk: replaced whole, read without pickle."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import Precision
from pydantic import ValidationError

from softkin.errors import DataError, InvalidInputError, RecipeError, reason_of
from softkin.unfinished_files import written_whole
from softkin_training.config import Recipe
from softkin_training.history import GO_ON
from softkin_training.losses import LayeredSnnl
from softkin_training.models import Classifier
from softkin_training.processes import num_processes, on_first, rank, stacked

UNDECISIVE = ("data.path", "data.test_path", "data.outliers", "training.probe_rows", "training.cuda_graph")
"""Keys of a recipe that change the weights by rounding at most; files may move, because rows have a fingerprint."""

AFRESH = "run the train step again, without --resume"
"""The remedy in messages about a checkpoint that cannot be used."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run on disk. The learning rate is a function of the step, so the epoch count restores it."""

    path: Path
    recipe: Recipe
    rows_fingerprint: str
    model: Classifier
    optimizer: torch.optim.Optimizer
    snnl: LayeredSnnl
    shuffle: torch.Generator
    device: torch.device
    precision: Precision = field(default_factory=Precision)
    """The precision of the training; that of 16 bits has a state, the scale of the loss."""

    def save(self, history: list[dict[str, Any]]) -> None:
        """Replace the file by the state after the epochs of `history`; for all processes together, the first writes.

        Raises:
            InvalidInputError: it cannot be written, as on a full disk; the old file is untouched.
        """
        on_cuda = self.device.type == "cuda"
        state = {
            "epoch": len(history),
            "history": history,
            "recipe": self.recipe.to_dict(),
            "train_fingerprint": self.rows_fingerprint,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "temperatures": self.snnl.state_dict(),
            "precision": self.precision.state_dict(),
            "rng": {
                "shuffle": self.shuffle.get_state(),
                "torch": stacked(torch.get_rng_state(), self.device),
                "cuda": stacked(torch.cuda.get_rng_state(self.device), self.device) if on_cuda else torch.empty(0),
            },
        }
        on_first(lambda: self._write(state))

    def _write(self, state: dict[str, Any]) -> None:
        serialized = io.BytesIO()  # to a full disk torch.save would raise something that does not say so
        torch.save(state, serialized)
        try:
            with written_whole(self.path) as temporary:
                temporary.write_bytes(serialized.getbuffer())
        except OSError as e:
            kept = "the one before is kept" if self.path.exists() else "there is none yet"
            raise InvalidInputError("out_dir", f"cannot write {self.path} ({e.strerror}), {kept}; {GO_ON}") from None

    def load(self) -> list[dict[str, Any]]:
        """Restore everything in place, in each process its own random state; return the history so far.

        Raises:
            DataError: the file cannot be read, or is damaged.
            RecipeError: it is another recipe's, of other rows, or of another number of processes.
        """
        try:
            with self.path.open("rb") as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
            recipe, rng = dict(state["recipe"]), state["rng"]
            rng_of_processes = rng["torch"].reshape(-1, rng["torch"].shape[-1])
        except OSError as e:
            raise DataError(f"{self.path}: cannot be read ({reason_of(e)}); make it readable, or {AFRESH}") from None
        except Exception as e:  # torch raises many types for a damaged file, with advice that would run its code
            raise DataError(f"{self.path}: damaged, or no checkpoint of softkin; {AFRESH}") from e
        if odd := _differences(_completed(recipe), self.recipe.to_dict()):
            raise RecipeError(f"{self.path} is another recipe's: {odd}; undo that, or {AFRESH}")
        if state["train_fingerprint"] != self.rows_fingerprint:
            raise RecipeError(f"{self.path}: the training rows have changed; {AFRESH}")
        if num_processes() not in (1, len(rng_of_processes)):
            these = f"{len(rng_of_processes)} processes wrote it and these are {num_processes()}"
            raise RecipeError(f"{self.path}: {these}; start as many, or {AFRESH}")
        self.model.load_state_dict(state["model"])
        for group in state["optimizer"]["param_groups"]:
            for key in ("fused", "capturable"):
                group[key] = self.optimizer.defaults[key]  # a matter of the device, which may have been another
        self.optimizer.load_state_dict(state["optimizer"])
        self.snnl.load_state_dict(state["temperatures"])
        if scale := state.get("precision"):  # an older version's has none
            self.precision.load_state_dict(scale)
        self.shuffle.set_state(rng["shuffle"])
        torch.set_rng_state(rng_of_processes[rank()].clone())  # of memory of its own: torch crashes on some views
        if self.device.type == "cuda" and len(rng["cuda"]):
            torch.cuda.set_rng_state(rng["cuda"][rank()].clone(), self.device)
        return list(state["history"])


def _completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """An older version's recipe with the defaults of keys that came later, which change nothing."""
    try:
        return Recipe.model_validate(recipe).to_dict()
    except ValidationError:
        return recipe


def deciding(recipe: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe that decide the weights, by `section.key`.

    Args:
        recipe: as JSON-able values.
    """
    sections = {s: recipe.get(s, {}) for s in ("data", "model", "loss", "augmentation", "training")}
    keyed = {f"{s}.{k}": v for s, keys in sections.items() for k, v in keys.items()}
    return {"seed": recipe.get("seed")} | {k: v for k, v in keyed.items() if k not in UNDECISIVE}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """`section.key: old -> new` for each value that decides the weights and differs."""
    a, b = deciding(old), deciding(new)
    return ", ".join(f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k))
