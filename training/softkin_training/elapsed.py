"""How long a command has been at work, for whoever watches it. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn


@contextmanager
def elapsed(what: str) -> Iterator[None]:
    """Show what is done, and for how long already, on standard error while it lasts; nothing where that is no terminal.

    Nothing may be printed inside: it would be written into the line.
    """
    console = Console(stderr=True)
    console.quiet = not console.is_terminal  # before rich 14.3, a bar that is disabled ends with an empty line
    with Progress(
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # which may be a file, and not this terminal
        disable=console.quiet,
    ) as line:
        line.add_task(what, total=None)
        yield
