"""The state of a training run on disk: replaced whole, read without pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from softkin.errors import DataError, RecipeError
from softkin.staging import replacing
from softkin_training.config import Recipe
from softkin_training.losses import LayeredSnnl
from softkin_training.models import Classifier


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

    def save(self, history: list[dict[str, Any]]) -> None:
        """Replace the file by the state after the epochs of `history`."""
        state = {
            "epoch": len(history),
            "history": history,
            "recipe": self.recipe.to_dict(),
            "train_fingerprint": self.rows_fingerprint,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "temperatures": self.snnl.state_dict(),
            "rng": {
                "shuffle": self.shuffle.get_state(),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }
        with replacing(self.path) as temporary:
            torch.save(state, temporary)

    def load(self) -> list[dict[str, Any]]:
        """Restore everything in place; return the history so far."""
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            recipe = dict(state["recipe"])
        except Exception as e:  # torch raises many types for a damaged file, with advice that would run its code
            raise DataError(f"{self.path}: damaged, or not a checkpoint of softkin; train without resume") from e
        if odd := _differences(recipe, self.recipe.to_dict()):
            raise RecipeError(f"{self.path}: cannot resume, the recipe changed: {odd}; undo that, or do not resume")
        if state["train_fingerprint"] != self.rows_fingerprint:
            raise RecipeError(f"{self.path}: cannot resume, the training rows have changed; train without resume")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.snnl.load_state_dict(state["temperatures"])
        self.shuffle.set_state(state["rng"]["shuffle"])
        torch.set_rng_state(state["rng"]["torch"])
        if state["rng"]["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])
        return list(state["history"])


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """`section.key: old -> new` for what decides the weights; files may move, their rows are told by fingerprint."""
    places = ("data.path", "data.outliers")

    def flat(recipe: dict[str, Any]) -> dict[str, Any]:
        sections = {s: recipe.get(s, {}) for s in ("data", "model", "loss", "training")}
        keyed = {f"{s}.{k}": v for s, keys in sections.items() for k, v in keys.items()}
        return {"seed": recipe.get("seed")} | {k: v for k, v in keyed.items() if k not in places}

    a, b = flat(old), flat(new)
    return ", ".join(f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k))
