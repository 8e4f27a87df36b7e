"""What processes that train together exchange: rows of a batch, sums, and the results of the first process.

Everything here but `num_processes` and `rank` is for all processes together: one that stays away keeps the others
waiting. In a process alone nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from softkin.errors import SoftkinError

_T = TypeVar("_T")


def num_processes() -> int:
    """Processes that train together; 1 without a torch.distributed group."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _grouped() else 0


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


class Failure:
    """An error of ours on its way to another process: not all of them survive pickling.

    No dataclass, because Fabric opens those.

    Args:
        error: what to send.
    """

    def __init__(self, error: SoftkinError) -> None:
        self.kind, self.text, self.attributes = type(error), str(error), dict(vars(error))

    def error(self) -> SoftkinError:
        """The error again."""
        error = self.kind.__new__(self.kind, self.text)
        vars(error).update(self.attributes)
        return error


def on_first(work: Callable[[], _T]) -> _T:
    """Do something in the first process only; all get its result, or raise its SoftkinError."""
    if num_processes() == 1:
        return work()
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [work()]
        except SoftkinError as e:
            outcome = [Failure(e)]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Failure):
        raise outcome[0].error()
    return outcome[0]


def summed(values: Tensor) -> Tensor:
    """Replace a tensor by its sum over all processes, and return it."""
    if num_processes() > 1:
        dist.all_reduce(values)
    return values


def stacked(value: Tensor, device: torch.device) -> Tensor:
    """`[processes, ...]`, the tensors of one shape of all of them, on CPU; they travel through `device`."""
    if num_processes() == 1:
        return value.unsqueeze(0).cpu()
    local = value.to(device)
    parts = [torch.empty_like(local) for _ in range(num_processes())]
    dist.all_gather(parts, local)
    return torch.stack(parts).cpu()


@dataclass(frozen=True)
class Gathering:
    """Collects the rows of a batch from all processes."""

    sizes: tuple[int, ...]
    """Rows of each process."""

    @staticmethod
    def of(y: Tensor) -> Gathering:
        """Ask every process for the length of its labels `y`."""
        if num_processes() == 1:
            return Gathering((len(y),))
        size = torch.tensor([len(y)], device=y.device)
        sizes = [torch.zeros_like(size) for _ in range(num_processes())]
        dist.all_gather(sizes, size)
        return Gathering(tuple(int(s) for s in sizes))

    def __call__(self, local: Tensor) -> Tensor:
        """The rows `[n, ...]` of every process in order of rank, `[sum of sizes, ...]`, differentiable."""
        return local if len(self.sizes) == 1 else _Gather.apply(local, self.sizes)  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """Backward sends nothing: every process has taken the same loss of the same rows, so it has the whole gradient.

    Its own part is multiplied by the number of processes, because gradients of weights are averaged over processes
    afterwards, where those of a loss of all rows must be summed.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.start = sum(sizes[: rank()])
        ctx.stop = ctx.start + len(local)
        padded = local.new_zeros(max(sizes), *local.shape[1:])  # a collective wants equal shapes
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.start : ctx.stop] * num_processes(), None
