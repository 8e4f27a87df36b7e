"""From class masses to how strange a row would be as a member of each class: one object for calibration and serving.

posterior   few neighbours of the class (relative)
density     little mass of the class (absolute)
joint       several parts put on one scale, and the length of the vector that they make
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from softkin import mass
from softkin.conformal import SurpriseLines

Form = Literal["posterior", "density", "joint"]
Part = Literal[
    "posterior",
    "posterior_hidden",
    "density",
    "density_hidden",
    "density_last",
    "density_hidden_tail",
    "class_density",
    "class_density_hidden",
    "class_density_last",
    "class_density_hidden_tail",
    "energy",
    "boundary_distance",
]
FORMS: tuple[Form, ...] = get_args(Form)
PARTS: tuple[Part, ...] = get_args(Part)
CLASS_PARTS: dict[Part, Part] = {
    "class_density": "density",
    "class_density_hidden": "density_hidden",
    "class_density_last": "density_last",
    "class_density_hidden_tail": "density_hidden",
}
"""Each class part, and the part that it standardises by that part's center and spread on the class's reference rows."""
TAILS: frozenset[Part] = frozenset({"density_hidden_tail", "class_density_hidden_tail"})
"""Parts that count only how far the surprise of the part without `_tail` in its name goes beyond `TAIL_FROM`."""
TAIL_FROM, TAIL_WEIGHT = 2.5, 2.5
"""The surprise where tails start, and the weight of what lies beyond. Of rows like the reference rows one in twelve
(e^-2.5) lies beyond, so a tail hardly dilutes the other parts, and still shows what they do not (docs/decisions/0026).
"""
_FAR, _FOR_CLASS = "far from the training rows of the predicted class", "for how far rows of that class usually are"
PART_MEANINGS: dict[Part, str] = {
    "posterior": "training rows of other classes are nearer than those of the predicted one",
    "posterior_hidden": "training rows of other classes are nearer, in the layers before the last",
    "density": _FAR,
    "density_hidden": f"{_FAR}, in the layers before the last",
    "density_last": f"{_FAR}, in the last layer",
    "density_hidden_tail": f"very {_FAR}, in the layers before the last",
    "class_density": f"{_FAR}, {_FOR_CLASS}",
    "class_density_hidden": f"{_FAR}, {_FOR_CLASS}, in the layers before the last",
    "class_density_last": f"{_FAR}, {_FOR_CLASS}, in the last layer",
    "class_density_hidden_tail": f"very {_FAR}, {_FOR_CLASS}, in the layers before the last",
    "energy": "the network's own logits are small",
    "boundary_distance": "near the network's decision boundaries, for how far its features lie from usual ones",
}
"""What a large value of each part says about a row."""
CENTER, SCALE = "{}.center", "{}.scale"
"""Keys of a class part's center and spread among the references."""
PRIOR_ROWS = 10
"""Center and spread over all classes count like so many rows in those of one class, which may have few of its own."""
BLOCK_NUMBERS = 1 << 18
"""Class scores that are computed together, in several arrays of float64: calibration rows times classes can be
hundreds of millions."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What one pass of the network and the scorer yields for B rows."""

    masses: NDArray[np.float32]
    """`[B, L, C]` class masses."""
    logits: NDArray[np.float32] | None
    """`[B, C]` logits of the network; None for bare embeddings."""
    boundary: NDArray[np.float32] | None = None
    """`[B, C]` distance to the decision boundaries as a member of each class, where the model yields it (fDBD)."""

    def __len__(self) -> int:
        return len(self.masses)

    @property
    def all_finite(self) -> bool:
        """Whether `finite` is true for every row, found in half the time."""
        return all(bool(np.isfinite(array).all()) for array in self._arrays().values())

    @property
    def finite(self) -> NDArray[np.bool_]:
        """`[B]`: False for a row on which the network overflows."""
        of_each = [np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in self._arrays().values()]
        return np.asarray(np.logical_and.reduce(of_each))

    def take(self, rows: NDArray[np.bool_] | slice) -> Outputs:
        """Some of the rows, picked as those of an array are."""
        return replace(self, **{name: array[rows] for name, array in self._arrays().items()})

    def blocks(self) -> list[slice]:
        """Rows in blocks of about `BLOCK_NUMBERS` class scores, at least one block."""
        rows = max(1, BLOCK_NUMBERS // self.masses.shape[2])
        return [slice(i, i + rows) for i in range(0, max(1, len(self)), rows)]

    def _arrays(self) -> dict[str, NDArray[np.float32]]:
        named = {"masses": self.masses, "logits": self.logits, "boundary": self.boundary}
        return {name: array for name, array in named.items() if array is not None}


@dataclass(frozen=True, kw_only=True)
class Nonconformity:
    """One of the three forms, with all it needs beside the outputs.

    Args:
        form: which form.
        class_weights: `[C]` total bank weight per class.
        layer_weights: `[L]` weights of the layers in the posterior and density sums.
        parts: the parts of the joint form.
        references: what `fit_references` found: per part its sorted scores on the reference rows, which are not the
            calibration rows, and `[C]` center and spread of class parts.
    """

    form: Form
    class_weights: Floats
    layer_weights: Floats
    parts: tuple[Part, ...] = ()
    references: Mapping[str, Floats] = field(default_factory=dict)

    def __call__(self, outputs: Outputs) -> Floats:
        """`[B, C]`: nonconformity a(x, j) of every row with every class; higher = stranger.

        A row on which the network overflows (finite input, but an output that is NaN or infinite) gets +inf: nothing is
        stranger, and NaN would compare as nothing at all.
        """
        blocks = outputs.blocks()
        if len(blocks) == 1:
            return self._of_block(outputs)
        return np.concatenate([self._of_block(outputs.take(rows)) for rows in blocks])

    def _of_block(self, outputs: Outputs) -> Floats:
        if outputs.all_finite:
            return self._of_finite(outputs)
        finite = outputs.finite
        a_BC = np.full((len(outputs), outputs.masses.shape[2]), np.inf)
        a_BC[finite] = self._of_finite(outputs.take(finite))
        return a_BC

    def _of_finite(self, outputs: Outputs) -> Floats:
        if self.form != "joint":
            return self.part(self.form, outputs)
        squares_BC = np.zeros((len(outputs), outputs.masses.shape[2]))
        for part, scores in self._scores_of_parts(outputs):
            surprise = self._surprise(part, scores[:, :1] if part == "energy" else scores)  # which no class changes
            squares_BC += surprise * surprise
        # A row that one part finds very strange outweighs one that several find a little strange, as a sum would not.
        return np.sqrt(squares_BC)

    def terms(self, outputs: Outputs, classes_B: NDArray[np.int32]) -> Floats:
        """`[B, P]`: what each row's nonconformity with its class is made of.

        Of the joint form the surprise of every part, whose length it is; of the others the term of every layer, whose
        sum it is.

        Args:
            outputs: of B rows.
            classes_B: `[B]` class of each row; the predicted one makes up the outlier score.
        """
        return np.concatenate([self._terms_of_block(outputs.take(b), classes_B[b]) for b in outputs.blocks()])

    def _terms_of_block(self, outputs: Outputs, classes_B: NDArray[np.int32]) -> Floats:
        finite = outputs.finite
        terms = self._terms_of_finite(outputs.take(finite), classes_B[finite])
        terms_BP = np.full((len(outputs), len(terms)), np.inf)
        terms_BP[finite] = np.stack(terms, axis=1)
        return terms_BP

    def _terms_of_finite(self, outputs: Outputs, classes_B: NDArray[np.int32]) -> list[Floats]:
        if self.form == "joint":
            return [self._surprise(p, outlier_score(a, classes_B)) for p, a in self._scores_of_parts(outputs)]
        terms = []
        for i in range(len(self.layer_weights)):
            layer = replace(self, layer_weights=self.layer_weights[i : i + 1])
            of_layer = Outputs(masses=outputs.masses[:, i : i + 1], logits=outputs.logits)
            terms.append(outlier_score(layer.part(self.form, of_layer), classes_B))
        return terms

    def _scores_of_parts(self, outputs: Outputs) -> Iterator[tuple[Part, Floats]]:
        """All parts, as `part` gives them; what two of them rest on is computed once."""
        plain: dict[str, Floats] = {}
        for part in self.parts:
            base = CLASS_PARTS.get(part, part)
            name = base.removesuffix("_tail")  # a tail is of the same scores
            if name not in plain:
                plain[name] = self.part(base, outputs)
            yield part, self._in_class_units(part, plain[name])

    def _surprise(self, part: Part, scores: Floats) -> Floats:
        surprise = self._lines[part](scores)
        return TAIL_WEIGHT * np.maximum(surprise - TAIL_FROM, 0.0) if part in TAILS else surprise

    @cached_property
    def _lines(self) -> dict[Part, SurpriseLines]:
        return {p: SurpriseLines.through(self.references[p]) for p in self.parts}

    def part(self, part: Part, outputs: Outputs) -> Floats:
        """`[B, C]`: one part on its own scale."""
        if part in CLASS_PARTS:
            return self._in_class_units(part, self.part(CLASS_PARTS[part], outputs))
        m, layer_weights = outputs.masses, self.layer_weights
        hidden = slice(None, max(1, m.shape[1] - 1))
        match part:
            case "posterior":
                return mass.posterior(m, layer_weights)
            case "posterior_hidden":  # the last layer separates the classes for any row, so it has little to say here
                return mass.posterior(m[:, hidden], layer_weights[hidden])
            case "density":
                return mass.density(m, self.class_weights, layer_weights)
            case "density_hidden" | "density_hidden_tail":
                return mass.density(m[:, hidden], self.class_weights, layer_weights[hidden])
            case "density_last":
                return mass.density(m[:, -1:], self.class_weights, np.ones(1))
            case "boundary_distance":
                assert outputs.boundary is not None, "the part needs a model that yields it"
                return -outputs.boundary.astype(np.float64)
            case "energy":
                assert outputs.logits is not None, "the energy part needs a network"
                return np.broadcast_to(mass.energy(outputs.logits)[:, None], (len(m), m.shape[2]))
            case _:
                raise AssertionError(f"no such part: {part}")

    def _in_class_units(self, part: Part, a_BC: Floats) -> Floats:
        """A class part from the part that it rests on; any other part as it is."""
        if part not in CLASS_PARTS:
            return a_BC
        return (a_BC - self.references[CENTER.format(part)]) / self.references[SCALE.format(part)]

    def part_score(self, part: Part, outputs: Outputs) -> Floats:
        """`[B]`: one part at the predicted class."""
        a_BC = self.part(part, outputs)
        return outlier_score(a_BC, self.predict(outputs, a_BC))

    def predict(self, outputs: Outputs, nonconformity_BC: Floats) -> NDArray[np.int32]:
        """`[B]`: the network's own class; without a network the class of smallest nonconformity."""
        if outputs.logits is not None:
            return outputs.logits.argmax(axis=1).astype(np.int32)
        return nonconformity_BC.argmin(axis=1).astype(np.int32)


def fit_references(plain: Nonconformity, parts: Sequence[Part], outputs: Outputs) -> dict[str, Floats]:
    """What puts the parts of a joint form on one scale. Labels are not looked at, so p-values stay exact.

    Args:
        plain: gives the weights; its form and parts are not used.
        parts: of the joint form.
        outputs: of reference rows, which must not calibrate.

    Returns:
        By part its sorted scores at the predicted class; for class parts also center and spread, see `CENTER`.
    """
    found: dict[str, Floats] = {}
    for part in parts:
        a_BC = plain.part(CLASS_PARTS.get(part, part), outputs)
        predicted = plain.predict(outputs, a_BC)
        if part in CLASS_PARTS:
            center, scale = class_units(outlier_score(a_BC, predicted), predicted, a_BC.shape[1])
            found[CENTER.format(part)], found[SCALE.format(part)] = center, scale
            a_BC = (a_BC - center) / scale
        found[part] = np.sort(outlier_score(a_BC, predicted))
    return found


def class_units(scores_B: Floats, classes_B: NDArray[np.int32], num_classes: int) -> tuple[Floats, Floats]:
    """`[C]` medians and standard deviations by class, shrunk towards those of all rows with the weight of `PRIOR_ROWS`.

    A class without rows gets those of all rows.
    """
    median, variance = float(np.median(scores_B)), float(scores_B.var())
    center, squared = np.full(num_classes, median), np.full(num_classes, variance)
    for j in np.unique(classes_B):
        of_class = scores_B[classes_B == j]
        n = len(of_class)
        center[j] = (n * np.median(of_class) + PRIOR_ROWS * median) / (n + PRIOR_ROWS)
        squared[j] = (n * of_class.var() + PRIOR_ROWS * variance) / (n + PRIOR_ROWS)
    return center, np.sqrt(np.where(squared > 0, squared, 1.0))  # equal scores have no spread: their unit stays


def outlier_score(nonconformity_BC: Floats, predicted_class_B: NDArray[np.int32]) -> Floats:
    """`[B]`: nonconformity at the predicted class; label-free, so calibration and test rows get the same function."""
    return nonconformity_BC[np.arange(len(predicted_class_B)), predicted_class_B]
