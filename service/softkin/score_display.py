"""What `softkin score` reads and prints."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import markup
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from softkin.display import print_columns, spelled, table
from softkin.errors import DataError
from softkin.nonconformity import PART_MEANINGS
from softkin.npz import array_of, open_npz, read_npy
from softkin.scores import ErrorBudget, Scores

DEFAULT_KEY = "x_test"
"""The array of an .npz file that is scored when none is named."""
NAMES_KEY = "names"
"""The array of an .npz file that names rows, where it is a text for each."""
STEP_ROWS = 256
"""Rows sent at a time: small enough for a bar to move."""
LONGEST_TABLE = 1000
"""A table of more rows gets no lines and colours, which would take longer than scoring."""
OUTLIER = "outlier"
"""The verdict."""
MOST_LIKE = "most like"
"""Over the names of nearest training rows."""
P_VALUE_WIDTH = len("1.234e-05")
"""Letters of the longest p-value in four digits."""


def read_array(path: str, key: str | None) -> NDArray[np.generic]:
    """Read an .npy file, or one array of an .npz file.

    Args:
        path: the file; one whose name does not end in .npy is taken for an .npz file.
        key: which array of an .npz file; `DEFAULT_KEY` if None.

    Raises:
        DataError: no such file or array, neither kind of file, a pickled or zero-dimensional array, or a key for a
            file of one array.
    """
    if path.endswith(".npy"):
        if key is not None:
            raise DataError(f"{path}: an .npy file has one array, and no --key {key!r}; leave --key out")
        array: NDArray[np.generic] = read_npy(path, "write one with numpy.save(FILE, ROWS)")
        name = "its array"
    else:
        key = DEFAULT_KEY if key is None else key
        remedy = f"write one with numpy.savez(FILE, {DEFAULT_KEY}=ROWS), or choose another array with --key"
        with open_npz(path, remedy) as file:
            if key not in file:
                there = spelled(", ".join(file)) or "none"
                raise DataError(f"{path}: has no array {key!r}; it has: {there}; choose with --key")
            array = array_of(file, key)
        name = f"array {key!r}"
    if array.ndim == 0:
        raise DataError(f"{path}: {name} is a single value; the first axis must be rows")
    return array


def read_names(path: str, rows: int) -> list[str] | None:
    """What an .npz file calls its rows: `NAMES_KEY`, where that holds as many texts; None where it does not.

    Raises:
        DataError: the file cannot be read.
    """
    if path.endswith(".npy"):
        return None
    with open_npz(path, "write one with numpy.savez") as file:
        try:
            found = array_of(file, NAMES_KEY) if NAMES_KEY in file else np.zeros(0)
        except ValueError:  # Python objects, which nobody asked for
            return None
    return [str(name) for name in found] if found.dtype.kind == "U" and found.shape == (rows,) else None


def in_steps(x: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """The rows of an array, some at a time; an array without rows as it is, for the server to refuse."""
    if len(x) == 0:
        yield x
        return
    for i in range(0, len(x), STEP_ROWS):
        yield x[i : i + STEP_ROWS]


def progress(answers: Iterable[Scores], rows: int) -> Iterator[Scores]:
    """The answers as they come, with a bar on standard error where somebody watches it."""
    console = Console(stderr=True)
    console.quiet = not console.is_terminal  # before rich 14.3, a bar that is disabled ends with an empty line
    with Progress(
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console.quiet,
    ) as bar:
        task = bar.add_task("scoring", total=rows)
        for scores in answers:
            bar.advance(task, len(scores))
            yield scores


def print_json(
    scores: Scores, classes: Sequence[str], *, names: Sequence[str] | None = None, flagged_only: bool = False
) -> None:
    """Print one JSON object per row, then one with the error budget; values that are not finite become null."""
    for i in _shown(scores, flagged_only=flagged_only):
        row: dict[str, Any] = {
            "row": i,
            **({} if names is None else {"name": names[i]}),
            "is_outlier": bool(scores.is_outlier[i]),
            "p_value": float(scores.p_value[i]),
            "outlier_score": _finite(scores.outlier_score[i]),
            "predicted_class": int(scores.predicted_class[i]),
            "predicted_class_name": _class_name(classes, int(scores.predicted_class[i])),
            "credibility": float(scores.credibility[i]),
            "confidence": float(scores.confidence[i]),
            "class_p_values": scores.class_p_values[i].tolist(),
        }
        if (n := scores.neighbors) is not None:
            row["neighbors"] = {
                layer: [
                    {
                        "id": int(d),
                        **({"name": n.names[int(d)]} if int(d) in n.names else {}),
                        "class_name": _class_name(classes, int(c)),
                        "distance": _finite(x),
                        "share": _finite(s),
                    }
                    for d, c, x, s in zip(n.ids[i, k], n.labels[i, k], n.distances[i, k], n.shares[i, k], strict=True)
                    if c >= 0  # -1 where the layer overflows, and none is near
                ]
                for k, layer in enumerate(n.layers)
            }
        if (p := scores.parts) is not None:
            row["parts"] = {name: _finite(value) for name, value in zip(p.names, p.values[i], strict=True)}
        print(json.dumps(row, allow_nan=False))
    summary = {"rows": len(scores), "flagged": int(scores.is_outlier.sum()), **dataclasses.asdict(scores.budget)}
    print(json.dumps({"budget": summary}, allow_nan=False))


def print_table(
    scores: Scores, classes: Sequence[str], *, names: Sequence[str] | None = None, flagged_only: bool = False
) -> None:
    """Print a table of rows and a line that puts the share flagged, of all rows, beside the false-alarm rate.

    Args:
        scores: of all rows.
        classes: what they are called.
        names: what rows are called, in the place of their numbers.
        flagged_only: leave the other rows out.
    """
    shown = _shown(scores, flagged_only=flagged_only)
    headers = ["row", "verdict", "predicted class", "p-value", "credibility"]
    if scores.parts is not None:
        headers.append("strangest in")
    if named := scores.neighbors is not None and bool(scores.neighbors.names):
        headers.append(MOST_LIKE)
    if scores.neighbors is not None:
        headers.append(f"nearest training rows ({spelled(scores.neighbors.layers[-1])})")
    called = range(len(scores)) if names is None else [spelled(name) for name in names]
    cells = ([str(called[i]), *_cells(scores, i, classes)] for i in shown)
    console = Console(emoji=False)
    longest = max((len(str(called[i])) for i in shown), default=0)
    longest_like = max((len(_most_like(scores, i)) for i in shown), default=0)
    if len(shown) > LONGEST_TABLE or console.width < _narrowest_table(headers, longest, longest_like):
        predicted = [spelled(_class_name(classes, int(j))) for j in np.unique(scores.predicted_class)]
        widths = [longest, len(OUTLIER), max(map(len, predicted)), P_VALUE_WIDTH, P_VALUE_WIDTH]
        if scores.parts is not None:
            widths.append(max(len(_respect(scores, name)) for name in scores.parts.names))
        if named:
            widths.append(longest_like)
        print_columns(headers, cells, widths)
    elif shown:
        rows = table(*map(markup.escape, headers))
        for header in {"row", "credibility", MOST_LIKE} & {*headers}:  # or 80 columns would fold their last letters
            rows.columns[headers.index(header)].no_wrap = True
        for row in cells:
            verdict = f"[red]{row[1]}[/red]" if row[1] == OUTLIER else row[1]
            rows.add_row(markup.escape(row[0]), verdict, *map(markup.escape, row[2:]))
        console.print(rows)
    for line in _reasons(scores):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    b, flagged = scores.budget, int(scores.is_outlier.sum())
    console.print(
        f"{len(scores)} row{'s' * (len(scores) > 1)}, {flagged} flagged: {flagged / len(scores):.2%}; {promise(b)} "
        f"({b.calibration_size} calibration rows; {b.detector} {b.version} on {b.device})",
        highlight=False,
        soft_wrap=True,
    )


def _narrowest_table(headers: Sequence[str], longest: int, longest_like: int) -> int:
    """Columns of a terminal that has room for the longest words; in less they would be folded, to a letter a line.

    Args:
        headers: of the table.
        longest: letters of what a row is called, which is one word: it may be a path to copy.
        longest_like: likewise of the training row that it is most like.
    """
    heads = (header.partition(" (")[0] for header in headers)  # a layer's name may be folded
    least = {"row": longest, "p-value": P_VALUE_WIDTH, MOST_LIKE: longest_like}
    words = (max(least.get(head, 0), *map(len, head.split())) for head in heads)
    return 1 + sum(word + len("│  ") for word in words)


def _shown(scores: Scores, *, flagged_only: bool) -> Sequence[int]:
    return np.flatnonzero(scores.is_outlier).tolist() if flagged_only else range(len(scores))


def _cells(scores: Scores, i: int, classes: Sequence[str]) -> list[str]:
    cells = [
        OUTLIER if scores.is_outlier[i] else "inlier",
        spelled(_class_name(classes, int(scores.predicted_class[i]))),
        f"{scores.p_value[i]:.4g}",
        f"{scores.credibility[i]:.4g}",
    ]
    if (p := scores.parts) is not None:
        cells.append(_respect(scores, p.names[int(p.values[i].argmax())]) if scores.is_outlier[i] else "")
    if scores.neighbors is not None and scores.neighbors.names:
        cells.append(_most_like(scores, i))
    if (n := scores.neighbors) is not None and len(classes) == 1:  # its name would be the same for all
        cells.append(", ".join(str(d) for d in n.ids[i, -1] if d >= 0) or "none")
    elif n is not None:
        counts = Counter(_class_name(classes, int(label)) for label in n.labels[i, -1] if label >= 0)
        names = [f"{name} x{count}" if count > 1 else name for name, count in counts.most_common()]
        cells.append(spelled(", ".join(names) or "none"))
    return cells


def _most_like(scores: Scores, i: int) -> str:
    """What the nearest training row of the last layer is called; its id where it has no name, nothing where none is."""
    n = scores.neighbors
    if n is None or n.ids[i, -1, 0] < 0:
        return ""
    nearest = int(n.ids[i, -1, 0])
    return spelled(n.names.get(nearest, str(nearest)))


def _respect(scores: Scores, name: str) -> str:
    """The name of a layer; that of a part with spaces, where a narrow terminal may fold it."""
    return spelled(name if name in _layers(scores) else name.replace("_", " "))


def _layers(scores: Scores) -> tuple[str, ...]:
    return () if scores.neighbors is None else scores.neighbors.layers


def _reasons(scores: Scores) -> Iterator[str]:
    """A line for each respect in which an outlier is strangest, with its meaning; none if there is but one respect."""
    if scores.parts is None or len(scores.parts.names) < 2:
        return
    found = dict.fromkeys(scores.parts.names[i] for i in scores.parts.values[scores.is_outlier].argmax(axis=1))
    layers = [name for name in found if name in _layers(scores)]
    if layers:
        named = spelled(", ".join(layers))
        yield f"{named}: the layer in which the row is least like training rows of its predicted class"
    for part, meaning in PART_MEANINGS.items():
        if part in found and part not in layers:
            yield f"{_respect(scores, part)}: {meaning}"


def promise(b: ErrorBudget) -> str:
    """What the verdicts of an answer promise, in a line."""
    if b.guarantee == "false_discovery_rate":
        rate = f"of the rows flagged at most {b.alpha:.2%} are inliers, in expectation"
        if b.fewest_selectable is None:
            return rate
        return f"{rate}; {b.fewest_selectable} of the rows must have the smallest p-value before any is flagged"
    bound = f"at most {b.false_alarm_bound:.2%} with this calibration set, at confidence {b.confidence:g}"
    if b.guarantee == "certified":
        return f"inliers alone give {bound} (certified at alpha {b.alpha:g})"
    group = " in every predicted class" if b.guarantee == "class_conditional" else ""
    return f"inliers alone would give about {b.alpha:.2%}{group}, {bound}"


def _class_name(classes: Sequence[str], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else str(index)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
