"""The training loop, read from top to bottom; what it minimises is in `step`.

Everything random follows from recipe.seed: on CPU, with the same number of threads, equal recipes and data give equal
weights, also across an interruption.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from torch import nn

from softkin.device import available_threads
from softkin.errors import InvalidInputError, RecipeError
from softkin.unfinished_files import written_whole
from softkin_training.augmentation import make_augmentation
from softkin_training.batches import balanced_batches, onto
from softkin_training.checkpoint import Checkpoint
from softkin_training.config import Recipe
from softkin_training.data import Dataset
from softkin_training.entanglement_plot import draw_entanglement
from softkin_training.epoch_sums import EpochSums, non_finite, refuse_non_finite_weights
from softkin_training.history import History, Recorder
from softkin_training.kept_memory import kept_memory
from softkin_training.launch import launch, make_fabric, spawns
from softkin_training.losses import LayeredSnnl
from softkin_training.models import Classifier, build_model, input_statistics
from softkin_training.probe import Probe, choose_probe_rows
from softkin_training.processes import num_processes, on_first, rank
from softkin_training.row_contents import fingerprint
from softkin_training.rows import Rows
from softkin_training.step import Step, make_optimizer

CHECKPOINT, REPORT = "checkpoint.pt", "report"
WARMUP_SHARE = 0.1
"""Share of all steps over which the learning rate rises to its peak."""


@dataclass(frozen=True)
class TrainResult:
    """A trained classifier, in eval mode on CPU, and how it got there."""

    model: Classifier
    history: History
    """One entry per epoch, as in history.jsonl."""


def train(
    recipe: Recipe, dataset: Dataset, out_dir: str | Path, *, resume: bool = False, progress: bool = True
) -> TrainResult:
    """Train the classifier of a recipe.

    Writes into `out_dir`: `history.jsonl`, one JSON object per epoch; `checkpoint.pt`, replaced atomically; with
    `training.probe_rows` `report/entanglement.svg` and `.png` at the end; `tensorboard/`, where that is installed.

    With `training.devices` above 1 processes are spawned (a script must guard its main code), or torchrun has started
    them (then only the first returns, the others end here); the batches are those of one process, dealt out among
    them. See `launch.make_fabric`.

    Args:
        recipe: what to train and how.
        dataset: the recipe's data.
        out_dir: made if missing; an older run in it is overwritten unless `resume`.
        resume: go on after the last checkpoint in `out_dir`; starts afresh where there is none.
        progress: show a progress bar.

    Raises:
        InvalidInputError: `out_dir` cannot be written. The last checkpoint stays.
        RecipeError: `resume` with another recipe or other training rows than the checkpoint's, or devices that cannot
            be had here.
        DataError: the loss or a weight became NaN or infinite; says where. The last checkpoint stays.
    """
    out_dir = Path(out_dir)
    fabric = make_fabric(recipe.training)
    if not spawns(fabric):
        return launch(fabric, _train, recipe, dataset, out_dir, resume, progress)
    sent = dataclasses.replace(dataset, naming=None)  # of no use in training, and not every kind can be sent
    launch(fabric, _train_for_checkpoint, recipe, sent, out_dir, resume, progress)
    return _load(recipe, dataset, out_dir)


def _train_for_checkpoint(fabric: Fabric, *arguments: Any) -> None:
    _train(fabric, *arguments)


def _train(
    fabric: Fabric, recipe: Recipe, dataset: Dataset, out_dir: Path, resume: bool, progress: bool
) -> TrainResult:
    on_first(lambda: _refuse_unwritable(out_dir))
    device, threads = fabric.device, recipe.training.cpu_threads
    with _seeded(recipe.seed, device), _cpu_threads(threads), tensor_cores(device), kept_memory():
        return _loop(fabric, recipe, dataset, out_dir, resume, progress)


def _loop(fabric: Fabric, recipe: Recipe, dataset: Dataset, out_dir: Path, resume: bool, progress: bool) -> TrainResult:
    settings = recipe.training
    rows = dataset.train
    model, snnl, optimizer = _assemble(recipe, dataset, fabric.device)
    masks = non_finite(model)
    if rank() > 0:
        torch.manual_seed(recipe.seed + (rank() << 32))  # the weights are the same everywhere, dropout must not be
    snnl.to(fabric.device)
    if num_processes() > 1 and fabric.device.type == "cuda":
        # So batch norm takes its statistics over the whole batch; between CPUs torch cannot do that.
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    fabric_model, fabric_optimizer = fabric.setup(model, optimizer)
    fabric_model.mark_forward_method("forward_with_hidden")
    weights = {layer: recipe.loss.weight_of(layer) for layer in recipe.loss.layers}
    take_step = Step(fabric, fabric_model, fabric_optimizer, snnl, weights, recorded=may_be_recorded(recipe))

    y = torch.from_numpy(rows.y)
    augment = make_augmentation(recipe.augmentation, rows.row_shape)
    shuffle = torch.Generator().manual_seed(recipe.seed)
    steps_per_epoch = sum(1 for _ in balanced_batches(y, settings.batch_size, torch.Generator().manual_seed(0)))
    path = out_dir / CHECKPOINT
    precision = fabric.strategy.precision
    checkpoint = Checkpoint(path, recipe, fingerprint(rows), model, optimizer, snnl, shuffle, fabric.device, precision)
    history = checkpoint.load() if resume and on_first(path.exists) else []
    probe = _probe(recipe, dataset)
    recorder = Recorder(out_dir)
    on_first(lambda: recorder.start(history))

    def measured() -> dict[str, Any]:
        """What only the first process measures; on `model`, for `fabric_model` would wait for the other processes."""
        with fabric.autocast():
            found: dict[str, Any] = {"test_accuracy": accuracy(model, dataset.test)}
            return found | ({"probe": probe.measure(model)} if probe else {})

    untrained = on_first(measured) if probe and not history else {}
    steps = settings.epochs * steps_per_epoch
    with _progress_bar(recipe.name, steps, shown=progress and rank() == 0) as bar:
        task = bar.add_task(recipe.name, total=steps, note="")
        bar.advance(task, len(history) * steps_per_epoch)
        for epoch in range(len(history) + 1, settings.epochs + 1):
            started = time.perf_counter()
            fabric_model.train()
            sums = EpochSums(weights, epoch, path, wait=fabric.device.type == "cpu")
            for i, batch in enumerate(balanced_batches(y, settings.batch_size, shuffle)):
                step = (epoch - 1) * steps_per_epoch + i
                rate = learning_rate_at(step, steps, settings.learning_rate)
                own = batch[rank() :: num_processes()]
                x_batch = onto(fabric.device, torch.from_numpy(rows.read(own.numpy())))
                y_batch = onto(fabric.device, y[own])
                if augment is not None:
                    x_batch = augment(x_batch)
                sums.add(step, take_step(x_batch, y_batch, len(batch), rate), len(batch))
                bar.update(task, advance=1, note=sums.note())
            sums.settle()
            history.append(
                {
                    "epoch": epoch,
                    **sums.means(),
                    "temperature": snnl.temperatures(),
                    **on_first(measured),
                    **({"probe_untrained": untrained["probe"]} if epoch == 1 and probe else {}),
                    "learning_rate": rate,
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
            on_first(lambda: recorder.add(history))
            if epoch % settings.checkpoint_every_epochs == 0 or epoch == settings.epochs:
                refuse_non_finite_weights(model, epoch, path, meant=masks)
                checkpoint.save(history)
    on_first(recorder.close)
    on_first(lambda: draw_entanglement(history, out_dir / REPORT))
    return TrainResult(model.cpu().eval(), history)


def _probe(recipe: Recipe, dataset: Dataset) -> Probe | None:
    if recipe.training.probe_rows == 0:
        return None
    return Probe(choose_probe_rows(dataset.test, recipe.training.probe_rows, recipe.seed), recipe.loss.metric)


def load_checkpoint(recipe: Recipe, dataset: Dataset, out_dir: str | Path) -> Classifier:
    """The classifier of a finished run in `out_dir`, in eval mode on CPU.

    Raises:
        InvalidInputError: there is no checkpoint.
        RecipeError: it is another recipe's, of other rows, or not finished.
        DataError: it is damaged.
    """
    return _load(recipe, dataset, Path(out_dir)).model


def _load(recipe: Recipe, dataset: Dataset, out_dir: Path) -> TrainResult:
    path, cpu = out_dir / CHECKPOINT, torch.device("cpu")
    if not path.exists():
        raise InvalidInputError("out", f"{path} does not exist; run the train step first")
    with _seeded(recipe.seed, cpu):
        model, snnl, optimizer = _assemble(recipe, dataset, cpu)
        rows_fingerprint = fingerprint(dataset.train)
        history = Checkpoint(path, recipe, rows_fingerprint, model, optimizer, snnl, torch.Generator(), cpu).load()
    if len(history) < recipe.training.epochs:
        raise RecipeError(f"{path} holds {len(history)} of {recipe.training.epochs} epochs; finish it with --resume")
    return TrainResult(model.eval(), history)


def _assemble(
    recipe: Recipe, dataset: Dataset, device: torch.device
) -> tuple[Classifier, LayeredSnnl, torch.optim.Optimizer]:
    rows, settings, loss = dataset.train, recipe.training, recipe.loss
    statistics = input_statistics(rows)
    model = build_model(
        recipe.model, rows.row_shape, len(dataset.class_names), *statistics, layers=recipe.hidden_layers
    )
    snnl = LayeredSnnl(
        loss.layers,
        metric=loss.metric,
        temperature=loss.temperature,
        fixed_temperature=loss.fixed_temperature,
        initial_temperature=loss.initial_temperature,
        temperature_step=loss.temperature_step,
        max_side=loss.max_side,
    )
    return model, snnl, make_optimizer(model, device, settings.weight_decay)


def may_be_recorded(recipe: Recipe) -> bool:
    """Whether steps may be recorded as a CUDA graph, see `Step`: not of a user's network, which may do anything."""
    return (
        recipe.training.cuda_graph
        and recipe.model.kind != "import"
        and recipe.loss.temperature != "learned"
        and recipe.training.precision != "16-mixed"
        and num_processes() == 1
    )


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
        logits = model(torch.from_numpy(rows.read(batch)).to(device))
        correct += int((logits.argmax(dim=1).cpu() == torch.from_numpy(rows.y[batch])).sum())
    return correct / len(rows)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Weights and dropout follow the seed inside; the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or min(before, available_threads()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """Inside, float32 products may use TF32 on a GPU if convolutions may, as is torch's default.

    A precision that the caller has chosen, other than torch's default, stays.
    """
    if device.type != "cuda" or not torch.backends.cudnn.allow_tf32 or not _default_precision():
        yield
        return
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def _default_precision() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch's newer switches were used, beside which it refuses to answer
        return False


def _progress_bar(name: str, steps: int, *, shown: bool) -> Progress:
    # On a narrow terminal the bar gives way, then the end of the note: how far it is and how long it takes stay.
    widths = (len(name), len(f"{steps}/{steps}"), len("0:00:00"))
    title, done, time = (Column(min_width=width, no_wrap=True) for width in widths)
    return Progress(
        TextColumn("{task.description}", table_column=title),
        BarColumn(),
        MofNCompleteColumn(table_column=done),
        TimeRemainingColumn(table_column=time),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
        console=Console(quiet=not shown),  # before rich 14.3, a bar that is disabled ends with an empty line
        disable=not shown,
    )


def _refuse_unwritable(out_dir: Path) -> None:
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with written_whole(out_dir / ".writable"):
            pass
        (out_dir / ".writable").unlink()
    except OSError as e:
        raise InvalidInputError("out_dir", f"cannot write to {out_dir} ({e.strerror}); choose another folder") from None
