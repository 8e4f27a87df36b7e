"""Files of one report, which appear together or not at all. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from softkin.unfinished_files import written_whole


@contextmanager
def written_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """New files beside `paths` to write to, as `written_whole` has one; then each replaces its path.

    Of two reports, one in the place of the other, no file may stand beside those of the other.

    Raises:
        OSError: one cannot be written; no path has changed.
    """
    with ExitStack() as stack:
        temporaries = [stack.enter_context(written_whole(path)) for path in paths]
        yield temporaries
        for temporary in temporaries:  # some disks say only now that they are full, and nothing is replaced yet
            with temporary.open("rb") as file:
                os.fsync(file.fileno())


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write texts into a folder that is there, by file name; together.

    Raises:
        OSError: one cannot be written; no file has changed.
    """
    with written_together([folder / name for name in texts]) as temporaries:
        for temporary, text in zip(temporaries, texts.values(), strict=True):
            temporary.write_text(text, encoding="utf-8")
