"""What a training run writes down each epoch: JSON lines, and TensorBoard where it is installed.

Every file is written from the whole history, so that a run that was killed and resumed leaves the same ones.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softkin.errors import InvalidInputError
from softkin.unfinished_files import written_whole

HISTORY, EVENTS = "history.jsonl", "tensorboard"
GO_ON = "make room, then go on with --resume"
"""How a run whose disk was full goes on, for messages."""
History = list[dict[str, Any]]
"""One entry per epoch; see `train` for its keys."""


class Recorder:
    """Writes the history of a run into its folder.

    Args:
        out: folder of the run: `history.jsonl`, and `tensorboard/` where that package is installed (the extra
            `tensorboard`; nothing is said where it is not).
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._board: Any = None

    def start(self, history: History) -> None:
        """Replace what stands in the files by the epochs so far, of a run that goes on, or by none.

        Raises:
            InvalidInputError: a file cannot be written.
        """
        self._write(history, history, start=True)

    def add(self, history: History) -> None:
        """Write after the last epoch of `history`.

        Raises:
            InvalidInputError: a file cannot be written.
        """
        self._write(history, history[-1:])

    def close(self) -> None:
        """Close what is open."""
        if self._board is not None:
            self._board.close()

    def _write(self, history: History, new: History, *, start: bool = False) -> None:
        try:
            if start:
                self._board = _board(self._out / EVENTS)
            with written_whole(self._out / HISTORY) as temporary:
                temporary.write_text("".join(json.dumps(epoch) + "\n" for epoch in history), encoding="utf-8")
            if self._board is not None:
                for epoch in new:
                    for name, value in scalars(epoch):
                        self._board.add_scalar(name, value, epoch["epoch"])
                self._board.flush()
        except OSError as e:
            raise InvalidInputError("out_dir", f"cannot write to {self._out} ({e.strerror}); {GO_ON}") from None


def scalars(epoch: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of an entry, named `key`, `key/layer` or `key/layer/what`."""
    for key, value in _flat(epoch, ""):
        if key not in ("epoch", "seconds") and value is not None:
            yield key, float(value)


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _board(folder: Path) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    for stale in folder.glob("events.out.tfevents.*"):
        stale.unlink()
    return SummaryWriter(folder)
