"""What follows the class masses, by number of classes: nonconformity, p-values, credibility and confidence."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from softkin import conformal
from softkin.nonconformity import Nonconformity, Outputs, Part, fit_references, outlier_score

CLASSES = (10, 100, 1_000, 10_000)
BATCHES = (1, 32, 256)
LAYERS, CALIBRATION_ROWS, ROUNDS = 3, 5_000, 15
FORMS: dict[str, tuple[Part, ...]] = {
    "density": (),
    "joint, the parts of fit": ("density", "class_density", "energy"),
    "joint, the parts of the recipes": (
        "class_density",
        "class_density_last",
        "posterior_hidden",
        "energy",
        "density_hidden_tail",
        "class_density_hidden_tail",
    ),
}


def measure_after_masses() -> list[dict[str, Any]]:
    """Milliseconds by form, classes and batch; medians over rounds."""
    found = []
    for form, parts in FORMS.items():
        for classes in CLASSES:
            print(f"after the masses: {form}, {classes:,} classes", flush=True)
            judge = _detector(parts, classes)
            ms = {str(batch): _median(judge, classes, batch) for batch in BATCHES}
            found.append({"form": form, "classes": classes, "ms": ms})
    return found


def _detector(parts: tuple[Part, ...], classes: int) -> Callable[[Outputs], None]:
    """All that a detector computes of masses, calibrated on rows like those of the calls."""
    plain = Nonconformity(form="density", class_weights=np.full(classes, 60.0), layer_weights=np.ones(LAYERS))
    nonconformity, rows = plain, min(CALIBRATION_ROWS, 50_000_000 // classes // LAYERS)
    if parts:
        references = fit_references(plain, parts, _outputs(rows, classes, seed=0))
        nonconformity = replace(plain, form="joint", parts=parts, references=references)
    outputs = _outputs(rows, classes, seed=1)
    a_BC = nonconformity(outputs)
    calibration = np.sort(outlier_score(a_BC, nonconformity.predict(outputs, a_BC)))
    return partial(_judge, nonconformity, calibration)


def _judge(nonconformity: Nonconformity, calibration: conformal.Floats, outputs: Outputs) -> None:
    a_BC = nonconformity(outputs)
    conformal.p_values(outlier_score(a_BC, nonconformity.predict(outputs, a_BC)), calibration)
    class_p_BC = conformal.p_values(a_BC, calibration)
    conformal.credibility(class_p_BC)
    conformal.confidence(class_p_BC)


def _outputs(rows: int, classes: int, *, seed: int) -> Outputs:
    """Masses and logits of rows that are each near one class, forty nats nearer than to most others."""
    rng = np.random.default_rng(seed)
    at = np.arange(rows), rng.integers(0, classes, rows)
    masses = rng.normal(-60, 10, size=(rows, LAYERS, classes)).astype(np.float32)
    logits = rng.normal(0, 1, size=(rows, classes)).astype(np.float32)
    masses[at[0], :, at[1]] += 40
    logits[at] += 12
    return Outputs(masses=masses, logits=logits)


def _median(judge: Callable[[Outputs], None], classes: int, batch: int) -> float:
    outputs, times = _outputs(batch, classes, seed=2), []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        judge(outputs)
        times.append(time.perf_counter() - started)
    return round(1e3 * float(np.median(times[1:])), 3)
