"""A function of tensors, recorded as a CUDA graph and replayed: many small kernels are launched as one."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CALLS_BEFORE, GRAPHS = 2, 8
"""Calls with tensors of equal shapes before a graph of them is recorded, and how many graphs there are at most."""
Kind = tuple[Any, ...]


class Replayed:
    """Calls a function; from the third call with equal shapes on, a CUDA device replays what it recorded.

    Launching a kernel takes the host longer than a small kernel takes the device. Elsewhere it only calls.

    Args:
        function: of tensors of one device, None among them allowed, to a tuple of tensors. Must not wait for the
            device, and must do the same in every call: what else it reads or keeps are tensors that stay where they
            are, and change in place. It takes gradients only where it enables them; what it returns carries none.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self.function = function
        self._calls: dict[Kind, int] = {}
        self._graphs: dict[Kind, _Graph] = {}
        self._memory: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Replayed, (self.function,)  # a copy records afresh: graphs belong to a process and its device

    @torch.no_grad()
    def __call__(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """The function's result, in tensors that no later call overwrites."""
        if not all(t is None or t.is_cuda for t in tensors) or torch.cuda.is_current_stream_capturing():
            return self.function(*tensors)
        kind = tuple(None if t is None else (t.shape, t.dtype, t.device) for t in tensors)
        if kind not in self._graphs:
            self._calls[kind] = self._calls.get(kind, 0) + 1
            if self._calls[kind] <= CALLS_BEFORE or len(self._graphs) == GRAPHS:
                return self.function(*tensors)
            self._memory = self._memory or torch.cuda.graph_pool_handle()
            self._graphs[kind] = _Graph(self.function, tensors, self._memory)
        return self._graphs[kind](tensors)


class _Graph:
    """One recorded graph. Those of a function share memory: only one runs at a time, and its outputs are copied."""

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor | None, ...], memory: Any
    ) -> None:
        self.device = next(t.device for t in tensors if t is not None)
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(self.device):
            self.inputs = [None if t is None else t.clone() for t in tensors]
            self.graph = torch.cuda.CUDAGraph()
            gc.collect()  # an autograd graph of an earlier call would draw its own stream into the recording
            # A stream of its own: torch's default one belongs to whatever device was the first to record anything.
            # thread_local: what other threads do on the device meanwhile is none of our business.
            stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            with torch.cuda.graph(self.graph, memory, stream, capture_error_mode="thread_local"):
                self.outputs = function(*self.inputs)

    def __call__(self, tensors: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        with torch.cuda.device(self.device):
            for kept, t in zip(self.inputs, tensors, strict=True):
                if kept is not None and t is not None:
                    kept.copy_(t)
            self.graph.replay()
            return tuple(t.clone() for t in self.outputs)
