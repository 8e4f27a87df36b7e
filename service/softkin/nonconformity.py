"""From class masses to how strange a row would be as a member of each class: one object for calibration and serving.

posterior   few neighbours of the class (relative)
density     little mass of the class (absolute)
joint       several parts put on one scale and summed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from softkin import conformal, mass

Form = Literal["posterior", "density", "joint"]
Part = Literal["posterior", "density", "density_last", "energy"]
FORMS: tuple[Form, ...] = get_args(Form)
PARTS: tuple[Part, ...] = get_args(Part)

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What one pass of the network and the scorer yields for B rows."""

    masses: NDArray[np.float32]
    """`[B, L, C]` class masses."""
    logits: NDArray[np.float32] | None
    """`[B, C]` logits of the network; None for bare embeddings."""

    def __len__(self) -> int:
        return len(self.masses)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """`[B]`: False for a row on which the network overflows."""
        finite = np.asarray(np.isfinite(self.masses).all(axis=(1, 2)))
        if self.logits is not None:
            finite &= np.isfinite(self.logits).all(axis=1)
        return finite

    def take(self, rows: NDArray[np.bool_]) -> Outputs:
        """The rows where `rows` is true."""
        return Outputs(masses=self.masses[rows], logits=None if self.logits is None else self.logits[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[Outputs]) -> Outputs:
        """Join the outputs of consecutive slices of a batch."""
        logits = [p.logits for p in parts if p.logits is not None]
        return cls(masses=np.concatenate([p.masses for p in parts]), logits=np.concatenate(logits) if logits else None)


@dataclass(frozen=True, kw_only=True)
class Nonconformity:
    """One of the three forms, with all it needs beside the outputs.

    Args:
        form: which form.
        class_weights: `[C]` total bank weight per class.
        layer_weights: `[L]` weights of the layers in the posterior and density sums.
        parts: the parts of the joint form.
        references: per part its sorted scores on the reference rows, which are not the calibration rows.
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
        finite = outputs.finite
        a_BC = np.full((len(outputs), outputs.masses.shape[2]), np.inf)
        if finite.any():
            a_BC[finite] = self._of_finite(outputs.take(finite))
        return a_BC

    def _of_finite(self, outputs: Outputs) -> Floats:
        if self.form != "joint":
            return self.part(self.form, outputs)
        return np.asarray(
            sum(conformal.tail_surprise(self.part(p, outputs), self.references[p]) for p in self.parts), np.float64
        )

    def part(self, part: Part, outputs: Outputs) -> Floats:
        """`[B, C]`: one part on its own scale."""
        m = outputs.masses
        if part == "posterior":
            return mass.posterior(m, self.layer_weights)
        if part == "density":
            return mass.density(m, self.class_weights, self.layer_weights)
        if part == "density_last":
            return mass.density(m[:, -1:], self.class_weights, np.ones(1))
        assert outputs.logits is not None, "the energy part needs a network"
        return np.repeat(mass.energy(outputs.logits)[:, None], m.shape[2], axis=1)

    def part_score(self, part: Part, outputs: Outputs) -> Floats:
        """`[B]`: one part at the predicted class."""
        a_BC = self.part(part, outputs)
        return outlier_score(a_BC, self.predict(outputs, a_BC))

    def predict(self, outputs: Outputs, nonconformity_BC: Floats) -> NDArray[np.int32]:
        """`[B]`: the network's own class; without a network the class of smallest nonconformity."""
        if outputs.logits is not None:
            return outputs.logits.argmax(axis=1).astype(np.int32)
        return nonconformity_BC.argmin(axis=1).astype(np.int32)


def outlier_score(nonconformity_BC: Floats, predicted_class_B: NDArray[np.int32]) -> Floats:
    """`[B]`: nonconformity at the predicted class; label-free, so calibration and test rows get the same function."""
    return np.take_along_axis(nonconformity_BC, predicted_class_B[:, None].astype(np.int64), axis=1)[:, 0]
