"""Where training runs: one process, several on this machine, or those that torchrun has started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch.distributed as dist
from lightning_fabric import Fabric

from softkin.errors import RecipeError, SoftkinError
from softkin_training.config import TrainingConfig
from softkin_training.processes import Failure

_T = TypeVar("_T")

GRACE_S = 5.0
"""How long all spawned processes together have to clean up after an interrupt."""


def make_fabric(training: TrainingConfig) -> Fabric:
    """The devices of a recipe.

    With one device everything happens in this process. With several each gets a process of its own, spawned by
    `launch`, or started beforehand by torchrun, on one or many machines:

        torchrun --no-python --nproc-per-node 2 softkin-train train RECIPE --out DIR --set training.devices=2

    `devices` counts those of one machine; DIR must be on storage that all machines share. Gradients are averaged by
    DistributedDataParallel: over gloo between CPUs, over NCCL between GPUs.

    Raises:
        RecipeError: the accelerator or so many devices cannot be had here, or torchrun started another number.
    """
    devices, world = training.devices, training.devices
    if _under_torchrun():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if local != devices:
            started = f"torchrun started {local} processes on this machine"
            raise RecipeError(f"training.devices is {devices}, but {started}; say --set training.devices={local}")
    strategy = "auto" if world == 1 else "ddp" if _under_torchrun() else "ddp_spawn"
    try:
        return Fabric(
            accelerator=training.accelerator,
            devices=devices,
            num_nodes=world // devices,
            strategy=strategy,
            precision=training.precision,
        )
    except Exception as e:  # Fabric has no common type for what it refuses
        asked = f"accelerator = {training.accelerator!r}, devices = {devices}, precision = {training.precision!r}"
        raise RecipeError(f"training: {asked} cannot be had here: {_reason(e)}; choose others with --set") from e


def _reason(error: Exception) -> str:
    """What Fabric says, without the full stop, which would stand before a semicolon."""
    return str(error).strip().rstrip(".")


def spawns(fabric: Fabric) -> bool:
    """Whether `launch` runs its function in other processes than this one."""
    return fabric.world_size > 1 and not _under_torchrun()


def launch(fabric: Fabric, function: Callable[..., _T], *arguments: Any) -> _T:
    """Call `function(fabric, *arguments)` in every process; return what the first one's call returns.

    Of several processes that torchrun has started, all but the first end here, with exit code 0.

    Args:
        fabric: from `make_fabric`.
        function: of a module, where it is to be spawned; it raises a SoftkinError in all processes or in none.
        arguments: picklable, likewise.
    """
    if not spawns(fabric):
        fabric.launch()
        result = function(fabric, *arguments)
        if fabric.world_size > 1:
            dist.destroy_process_group()
            if fabric.global_rank > 0:
                raise SystemExit(0)  # what comes after training would be done, and written, once for each process
        return result
    port, others = os.environ.get("MASTER_PORT"), multiprocessing.active_children()
    try:
        outcome: _T | Failure = fabric.launch(partial(_caught, function, arguments))
    except KeyboardInterrupt:
        _stop([process for process in multiprocessing.active_children() if process not in others])
        raise
    finally:
        # Fabric leaves the port it chose behind, and the next run in this process would take it for a user's wish.
        if port is None:
            os.environ.pop("MASTER_PORT", None)
    if isinstance(outcome, Failure):
        raise outcome.error()
    return outcome


def _stop(processes: list[BaseProcess]) -> None:
    """End spawned processes, which at exit would be waited for, to the end of training.

    SIGINT first, which torch keeps quiet about: SIGTERM runs no `finally`, where half-written files are removed.
    """
    for process in processes:
        if process.pid is not None:
            os.kill(process.pid, signal.SIGINT)
    deadline = time.monotonic() + GRACE_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.terminate()


def _caught(function: Callable[..., _T], arguments: tuple[Any, ...], fabric: Fabric) -> _T | Failure:
    try:
        outcome: _T | Failure = function(fabric, *arguments)
    except SoftkinError as e:
        outcome = Failure(e)
    dist.destroy_process_group()  # left to the end of the interpreter, gloo's threads may crash it
    return outcome


def refuse_torchrun(command: str) -> None:
    """Refuse a command that trains several times: torchrun leaves one process after the first training.

    Raises:
        RecipeError: torchrun has started this process.
    """
    if _under_torchrun():
        raise RecipeError(f"{command} cannot run under torchrun; start it once, with --set training.devices=N")


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
