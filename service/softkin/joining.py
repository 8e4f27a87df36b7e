"""Several answers for one array, as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from softkin.errors import UnavailableError
from softkin.scores import ROW_ARRAYS, ErrorBudget, Scores, evidence_of
from softkin.verdicts import select


def join(parts: Sequence[Scores]) -> Scores:
    """Join the answers for consecutive rows of one array; with `false_discovery_rate` rows are selected among all.

    Args:
        parts: at least one.

    Returns:
        One answer; `stage_seconds` are summed, and `budget.device` names all devices that the parts come from.

    Raises:
        UnavailableError: they come from different detectors or rules.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(_common(p.budget) != _common(first.budget) for p in parts):
        raise UnavailableError("the detector was replaced between two requests for one array; score the array again")
    names = (*ROW_ARRAYS, "class_p_values")
    joined: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    # Calls take turns among servers, and one of them may have fallen back to the CPU.
    devices = ",".join(dict.fromkeys(p.budget.device for p in parts))
    neighbors, respects = evidence_of(parts)
    return replace(
        _select_again(replace(first, budget=replace(first.budget, device=devices), **joined)),
        neighbors=neighbors,
        parts=respects,
        stage_seconds={k: sum(p.stage_seconds.get(k, 0.0) for p in parts) for k in first.stage_seconds},
    )


def _common(budget: ErrorBudget) -> ErrorBudget:
    """What must be the same in all answers for one array; a selection's threshold is each request's own."""
    budget = replace(budget, device="")
    if budget.guarantee != "false_discovery_rate":
        return budget
    return replace(budget, p_value_threshold=0.0, fewest_selectable=None)


def _select_again(joined: Scores) -> Scores:
    """Select among all rows where each request has selected among its own."""
    b = joined.budget
    if b.guarantee != "false_discovery_rate":
        return joined
    found = select(joined.p_value, b.calibration_size, b.alpha, smoothed=b.smoothed)
    return replace(
        joined,
        is_outlier=found.is_outlier,
        budget=replace(b, p_value_threshold=found.p_value_threshold, fewest_selectable=found.fewest_selectable),
    )
