"""Any `torch.nn.Module` as a classifier: made by import path, watched through forward hooks, never edited.

    [model]
    kind = "import"
    path = "my_package.nets:make_net"       module:name of a class or function
    arguments = { width = 64 }              what it is called with

The network takes float32 `[B, C, H, W]` for images, `[B, F]` for features, and returns logits `[B, K]`. Hidden layers
go by their `named_modules()` names. What would only show after hours of training is tried before the first step.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from softkin.errors import DataError, RecipeError
from softkin_training.classifier import Classifier

TRIAL_ROWS = 3
TOLERANCE = 1e-4
"""Largest difference between two evaluations of a row, relative to the largest magnitude of the output."""
MOST_NAMES = 40
"""Layers that an error message lists."""


def import_network(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Make a network from torch's current random state.

    Args:
        path: `module:name` of a class or function; the current directory is searched too.
        arguments: what it is called with, by name.

    Raises:
        RecipeError: nothing of that name can be imported, the call fails, or it makes no `torch.nn.Module`.
    """
    module_name, _, name = path.partition(":")
    with _current_directory_first():
        try:
            found: Any = importlib.import_module(module_name)
        except Exception as e:  # a module may raise anything while it is imported
            raise RecipeError(
                f"model.path is {path!r}: cannot import {module_name} ({type(e).__name__}: {e}); install it, or run "
                "where its folder is, or set PYTHONPATH"
            ) from e
        for part in name.split("."):
            if not hasattr(found, part):
                public = sorted(n for n, v in vars(found).items() if callable(v) and not n.startswith("_"))
                raise RecipeError(f"model.path is {path!r}: {module_name} has no {name!r}; it has {public}")
            found = getattr(found, part)
        if isinstance(found, nn.Module) or not callable(found):
            raise RecipeError(
                f"model.path is {path!r}, which is a {type(found).__name__}; name a class, or a function that makes "
                "the network, so that its weights follow the seed"
            )
        try:
            network = found(**arguments)
        except Exception as e:
            raise RecipeError(
                f"model.path is {path!r}: calling it with model.arguments = {dict(arguments)} fails "
                f"({type(e).__name__}: {e})"
            ) from e
    if not isinstance(network, nn.Module):
        raise RecipeError(f"model.path is {path!r}: it makes a {type(network).__name__}, not a torch.nn.Module")
    return network


class HookedClassifier(Classifier):
    """A network with hooks on its hidden layers while it runs.

    Args:
        network: takes preprocessed rows, returns logits.
        layers: names of hidden layers, as in `named_modules()`.
        image: whether it takes `[B, C, H, W]` (True) or `[B, F]` (False).
        mean: subtracted from the raw input; must broadcast against one raw row.
        std: divides it, likewise; > 0.

    Raises:
        RecipeError: it has no such layer; says which it has.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], *, image: bool, mean: Tensor, std: Tensor) -> None:
        super().__init__(layers, image=image, mean=mean, std=std)
        existing = [name for name, _ in network.named_modules() if name]
        for layer in layers:
            if layer not in existing:
                near = difflib.get_close_matches(layer, existing, n=MOST_NAMES, cutoff=0.0)
                more = f" and {len(existing) - len(near)} more" if len(existing) > len(near) else ""
                raise RecipeError(f"the network has no layer {layer!r}; the nearest names first, it has {near}{more}")
        self.network = network

    def forward_with_hidden(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, K]` and, by name, what each hidden layer hands on, in the order in which they run.

        Raises:
            RecipeError: a layer was not called, or twice, or its output is no tensor.
        """
        hidden: dict[str, Tensor] = {}
        hooks = [
            self.network.get_submodule(layer).register_forward_hook(partial(_keep, hidden, layer))
            for layer in self.hidden_layers
        ]
        try:
            logits = self.network(self.preprocess(x))
        finally:
            for hook in hooks:
                hook.remove()
        if unused := [layer for layer in self.hidden_layers if layer not in hidden]:
            raise RecipeError(f"layer {unused[0]!r} is not called when the network runs; name one that is")
        return logits, hidden

    def prove(self, row_shape: tuple[int, ...], num_classes: int) -> None:
        """Try a copy on made-up rows, in training and in evaluation, and put the hidden layers into running order.

        Args:
            row_shape: of one raw row.
            num_classes: K.

        Raises:
            RecipeError: a hidden layer is unfit, or in evaluation a row's outputs change from call to call or with
                the rows beside it.
            DataError: the network cannot take such rows, or does not return one logit per class.
        """
        if any(is_lazy(p) for p in self.parameters()):
            raise RecipeError("the network has lazy parameters, which training cannot start from; give their sizes")
        if not any(p.requires_grad for p in self.parameters()):
            raise RecipeError("the network has no parameter that can be trained; set requires_grad where it should be")
        trial = copy.deepcopy(self)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            x = torch.randn(TRIAL_ROWS, *row_shape) * self.std + self.mean
            training = trial.train()._tried(x, num_classes)
            evaluated = trial.eval()._tried(x, num_classes)
            again, fewer = trial._tried(x, num_classes), trial._tried(x[:-1], num_classes)
        for name, value in evaluated.items():
            what = f"layer {name!r} of the network" if name else "the output of the network"
            if training[name].shape != value.shape:
                shapes = f"{list(training[name].shape[1:])} in training and {list(value.shape[1:])} in evaluation"
                raise RecipeError(f"{what} has rows {shapes}; they must be equal")
            if not (bool(torch.isfinite(value).all()) and bool(torch.isfinite(training[name]).all())):
                raise RecipeError(
                    f"{what} has NaN or infinity on rows of made-up normal numbers; a detector needs finite outputs "
                    "for every row: check logarithms, roots and quotients"
                )
            if not _equal(value, again[name]):
                raise RecipeError(
                    f"{what} changes from call to call in evaluation: it draws random numbers, or keeps "
                    "state, though self.training is False; a detector needs equal outputs for equal rows"
                )
            if not _equal(value[:-1], fewer[name]):
                raise RecipeError(
                    f"{what} depends on the other rows of the batch in evaluation, as with BatchNorm "
                    "without running statistics; a detector needs each row's outputs to be its own"
                )
        self.hidden_layers = tuple(name for name in evaluated if name)

    def _tried(self, x: Tensor, num_classes: int) -> dict[str, Tensor]:
        """What hidden layers hand on by name, and the logits by no name."""
        mode = "training" if self.training else "evaluation"
        versions: dict[str, int] = {}
        for layer in self.hidden_layers:
            self.network.get_submodule(layer).register_forward_hook(partial(_note_version, versions, layer))
        try:
            logits, hidden = self.forward_with_hidden(x)
        except RecipeError:
            raise
        except Exception as e:
            seen = list(self.preprocess(x).shape[1:])
            raise DataError(
                f"the network fails in {mode} on rows {seen}, channels first ({type(e).__name__}: {e}); check "
                "model.arguments against the data"
            ) from e
        if not isinstance(logits, Tensor):
            raise DataError(f"the network returns a {type(logits).__name__} in {mode}; it must return logits alone")
        if logits.shape != (len(x), num_classes):
            raise DataError(
                f"the network returns {list(logits.shape)} for {len(x)} rows in {mode}, and the data have "
                f"{num_classes} classes; it must return logits [{len(x)}, {num_classes}]"
            )
        for layer, h in hidden.items():
            if h.ndim < 2 or len(h) != len(x) or not h.is_floating_point():
                raise RecipeError(
                    f"layer {layer!r} hands on {h.dtype} {list(h.shape)} for {len(x)} rows; it must be floating point "
                    "with the rows on its first axis"
                )
            if h._version != versions[layer]:
                raise RecipeError(
                    f"what layer {layer!r} hands on is changed in place by a later layer, such as ReLU(inplace=True); "
                    "name that layer, or make it inplace=False"
                )
        return {"": logits, **hidden}


def _keep(hidden: dict[str, Tensor], layer: str, module: nn.Module, inputs: Any, output: Any) -> None:
    if not isinstance(output, Tensor):
        raise RecipeError(
            f"layer {layer!r} ({type(module).__name__}) hands on a {type(output).__name__}, not a tensor; name a layer "
            "inside it or after it"
        )
    if layer in hidden:
        raise RecipeError(f"layer {layer!r} is called more than once when the network runs; name one that runs once")
    hidden[layer] = output


def _note_version(versions: dict[str, int], layer: str, module: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        versions[layer] = output._version  # counts changes in place


def _equal(a: Tensor, b: Tensor) -> bool:
    scale = max(float(a.abs().max()), torch.finfo(torch.float32).tiny)
    return bool((a - b).abs().max() <= TOLERANCE * scale)


@contextmanager
def _current_directory_first() -> Iterator[None]:
    """Commands are found elsewhere than the user's modules; python -m would search here too."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
