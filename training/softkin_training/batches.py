"""Training rows dealt out in class-balanced batches, and sent to where they are trained on."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def balanced_batches(labels: torch.Tensor, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Deal one epoch into batches that each mirror the class mix of the whole.

    Every row is visited exactly once. A class that is in a batch at all brings at least 2 rows, so that SNNL finds it a
    partner; of classes of equal size, each is in every batch where batch_size is at least twice their number. Unequal
    classes keep their shares, so none is seen more often than it occurs: one too rare for 2 rows in every batch is
    dealt in pairs to the batches that are shortest so far (and a class of one row stands alone).

    Args:
        labels: `[n]` integer labels, on CPU.
        batch_size: rows per batch; the average lies between this and, for fewer than 2 batches' worth, twice this.
        generator: source of randomness.

    Yields:
        `[b]` int64 indices into `labels`.
    """
    num_batches = max(1, len(labels) // batch_size)
    batches: list[list[torch.Tensor]] = [[] for _ in range(num_batches)]
    sizes = torch.zeros(num_batches)
    classes = labels.bincount().nonzero().squeeze(1)
    for label in classes[torch.randperm(len(classes), generator=generator)]:
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        shortest_first = (sizes + torch.rand(num_batches, generator=generator)).argsort()
        served = shortest_first[: max(1, len(rows) // 2)]
        for batch, share in zip(served.tolist(), rows.tensor_split(len(served)), strict=True):
            batches[batch].append(share)
            sizes[batch] += len(share)
    for shares in batches:
        if shares:
            yield torch.cat(shares)


def onto(device: torch.device, values: torch.Tensor) -> torch.Tensor:
    """Values in the CPU's memory, sent to a device without waiting for what it still has to do."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
