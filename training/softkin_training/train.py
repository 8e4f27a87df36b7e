"""The training loop: cross-entropy plus weighted soft nearest neighbor losses, read from top to bottom.

    objective = cross-entropy + sum over layers l of weight_l * SNNL_l        (Frosst et al. 2019, eq. 3)

Everything random follows from recipe.seed: on CPU, with the same number of threads, equal recipes and data give equal
weights, also across an interruption.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from softkin.errors import DataError, InvalidInputError, RecipeError
from softkin.staging import replacing
from softkin_training.checkpoint import Checkpoint
from softkin_training.config import Recipe
from softkin_training.data import Dataset, balanced_batches
from softkin_training.losses import LayeredSnnl
from softkin_training.models import Classifier, build_model, input_statistics
from softkin_training.rows import Rows, fingerprint

WARMUP_SHARE = 0.1
"""Share of all steps over which the learning rate rises to its peak."""


@dataclass(frozen=True)
class TrainResult:
    """A trained classifier, in eval mode on CPU, and how it got there."""

    model: Classifier
    history: list[dict[str, Any]]
    """One entry per epoch, as in history.jsonl."""


def train(
    recipe: Recipe, dataset: Dataset, out_dir: str | Path, *, resume: bool = False, progress: bool = True
) -> TrainResult:
    """Train the classifier of a recipe.

    Writes `out_dir/history.jsonl` (one JSON object per epoch) and `out_dir/checkpoint.pt` (replaced atomically).

    Args:
        recipe: what to train and how.
        dataset: the recipe's data.
        out_dir: made if missing; an older run in it is overwritten unless `resume`.
        resume: go on after the last checkpoint in `out_dir`; starts afresh where there is none.
        progress: show a progress bar.

    Raises:
        InvalidInputError: `out_dir` cannot be written.
        RecipeError: `resume` with another recipe or other training rows than the checkpoint's.
        DataError: the loss became NaN or infinite; says where. The last checkpoint stays.
    """
    out_dir = Path(out_dir)
    _refuse_unwritable(out_dir)
    fabric = Fabric(accelerator=recipe.training.accelerator, devices=1, precision=recipe.training.precision)
    with _seeded(recipe.seed, fabric.device), _cpu_threads(recipe.training.cpu_threads):
        return _train(recipe, dataset, out_dir, fabric, resume, progress)


def _train(
    recipe: Recipe, dataset: Dataset, out_dir: Path, fabric: Fabric, resume: bool, progress: bool
) -> TrainResult:
    settings = recipe.training
    rows = dataset.train
    model, snnl, optimizer = _assemble(recipe, dataset)
    snnl.to(fabric.device)
    fabric_model, fabric_optimizer = fabric.setup(model, optimizer)
    fabric_model.mark_forward_method("forward_with_hidden")

    x, y = torch.from_numpy(rows.x), torch.from_numpy(rows.y)
    shuffle = torch.Generator().manual_seed(recipe.seed)
    steps_per_epoch = sum(1 for _ in balanced_batches(y, settings.batch_size, torch.Generator().manual_seed(0)))
    checkpoint = Checkpoint(out_dir / "checkpoint.pt", recipe, fingerprint(rows.x), model, optimizer, snnl, shuffle)
    history = checkpoint.load() if resume and checkpoint.path.exists() else []
    _write_history(out_dir, history)

    with _progress_bar(progress) as bar:
        task = bar.add_task(recipe.name, total=settings.epochs * steps_per_epoch, note="")
        bar.advance(task, len(history) * steps_per_epoch)
        for epoch in range(len(history) + 1, settings.epochs + 1):
            started = time.perf_counter()
            fabric_model.train()
            sums = _Sums(recipe.loss.layers)
            for i, batch in enumerate(balanced_batches(y, settings.batch_size, shuffle)):
                step = (epoch - 1) * steps_per_epoch + i
                rate = learning_rate_at(step, settings.epochs * steps_per_epoch, settings.learning_rate)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                x_batch, y_batch = x[batch].to(fabric.device), y[batch].to(fabric.device)

                logits, hidden = fabric_model.forward_with_hidden(x_batch)
                cross_entropy = nn.functional.cross_entropy(logits, y_batch)
                entanglement = snnl(hidden, y_batch)
                objective = cross_entropy
                for layer, value in entanglement.items():
                    objective = objective + recipe.loss.weight_of(layer) * value
                _refuse_non_finite(cross_entropy, entanglement, epoch, step, checkpoint.path)

                fabric_optimizer.zero_grad()
                fabric.backward(objective)
                fabric_optimizer.step()

                sums.add(objective, cross_entropy, entanglement, logits, y_batch)
                bar.update(task, advance=1, note=sums.note())
            history.append(
                {
                    "epoch": epoch,
                    **sums.means(),
                    "temperature": snnl.temperatures(),
                    "test_accuracy": accuracy(fabric_model, dataset.test),
                    "learning_rate": rate,
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
            _write_history(out_dir, history)
            if epoch % settings.checkpoint_every_epochs == 0 or epoch == settings.epochs:
                checkpoint.save(history)
    return TrainResult(model.cpu().eval(), history)


def load_checkpoint(recipe: Recipe, dataset: Dataset, out_dir: str | Path) -> Classifier:
    """The classifier of a finished run in `out_dir`, in eval mode on CPU.

    Raises:
        InvalidInputError: there is no checkpoint.
        RecipeError: it is another recipe's, of other rows, or not finished.
        DataError: it is damaged.
    """
    path = Path(out_dir) / "checkpoint.pt"
    if not path.exists():
        raise InvalidInputError("out", f"{path} does not exist; run the train step first")
    with _seeded(recipe.seed, torch.device("cpu")):
        model, snnl, optimizer = _assemble(recipe, dataset)
        rows_fingerprint = fingerprint(dataset.train.x)
        history = Checkpoint(path, recipe, rows_fingerprint, model, optimizer, snnl, torch.Generator()).load()
    if len(history) < recipe.training.epochs:
        raise RecipeError(f"{path} holds {len(history)} of {recipe.training.epochs} epochs; finish it with --resume")
    return model.eval()


def _assemble(recipe: Recipe, dataset: Dataset) -> tuple[Classifier, LayeredSnnl, torch.optim.Optimizer]:
    rows, settings = dataset.train, recipe.training
    model = build_model(recipe.model, rows.x.shape[1:], len(dataset.class_names), *input_statistics(rows.x))
    snnl = LayeredSnnl(
        recipe.loss.layers,
        metric=recipe.loss.metric,
        temperature=recipe.loss.temperature,
        fixed_temperature=recipe.loss.fixed_temperature,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return model, snnl, optimizer


def learning_rate_at(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up over the first tenth of the steps, then half a cosine down to zero.

    Args:
        step: 0 to num_steps - 1.
        num_steps: of the whole run.
        peak: the highest rate.
    """
    warmup = max(1, round(WARMUP_SHARE * num_steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


@torch.inference_mode()
def accuracy(model: nn.Module, rows: Rows, *, batch_size: int = 512) -> float:
    """Share of rows whose largest logit is their label; leaves the model in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    correct = 0
    for start in range(0, len(rows), batch_size):
        batch = slice(start, start + batch_size)
        logits = model(torch.from_numpy(rows.x[batch]).to(device))
        correct += int((logits.argmax(dim=1).cpu() == torch.from_numpy(rows.y[batch])).sum())
    return correct / len(rows)


class _Sums:
    """Running means of one epoch."""

    def __init__(self, layers: list[str]) -> None:
        self.rows = self.correct = 0
        self.loss = self.ce = 0.0
        self.snnl = dict.fromkeys(layers, 0.0)

    def add(self, loss: Tensor, ce: Tensor, snnl: dict[str, Tensor], logits: Tensor, y: Tensor) -> None:
        num_rows = len(y)
        self.rows += num_rows
        self.correct += int((logits.argmax(dim=1) == y).sum())
        self.loss += float(loss.detach()) * num_rows
        self.ce += float(ce.detach()) * num_rows
        for layer, value in snnl.items():
            self.snnl[layer] += float(value.detach()) * num_rows

    def means(self) -> dict[str, Any]:
        snnl = {layer: total / self.rows for layer, total in self.snnl.items()}
        return {
            "loss": self.loss / self.rows,
            "ce": self.ce / self.rows,
            "snnl": snnl,
            "train_accuracy": self.correct / self.rows,
        }

    def note(self) -> str:
        means = self.means()
        layers = "".join(f" {layer} {value:.3f}" for layer, value in means["snnl"].items())
        return f"loss {means['loss']:.3f} acc {means['train_accuracy']:.3f}{' | SNNL' if layers else ''}{layers}"


def _write_history(out_dir: Path, history: list[dict[str, Any]]) -> None:
    with replacing(out_dir / "history.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(epoch) + "\n" for epoch in history), encoding="utf-8")


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Weights and dropout follow the seed inside; the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _progress_bar(shown: bool) -> Progress:
    name, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    return Progress(name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note, disable=not shown)


def _refuse_unwritable(out_dir: Path) -> None:
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with replacing(out_dir / ".writable") as temporary:
            temporary.touch()
        (out_dir / ".writable").unlink()
    except OSError as e:
        raise InvalidInputError("out_dir", f"cannot write to {out_dir} ({e.strerror}); choose another folder") from None


def _refuse_non_finite(ce: Tensor, snnl: dict[str, Tensor], epoch: int, step: int, checkpoint: Path) -> None:
    for what, value in {"cross-entropy": ce, **{f"SNNL of {layer}": v for layer, v in snnl.items()}}.items():
        if not bool(torch.isfinite(value)):
            kept = f"the checkpoint in {checkpoint} is kept" if checkpoint.exists() else "no checkpoint was written yet"
            raise DataError(
                f"{what} is {value.item()} in epoch {epoch}, step {step}; {kept}. Lower training.learning_rate, "
                "or the size of loss.weight"
            )
