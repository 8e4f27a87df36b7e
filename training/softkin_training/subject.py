"""A bundle under test: rows through its network and its bank once, for every score that wants them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from softkin import bundle as bundles
from softkin.bank import PADDING_LABEL
from softkin.bundle import Bundle
from softkin.conformal import credibility
from softkin.detector import Detector, nonconformity_of
from softkin.errors import InvalidInputError
from softkin.mass import Metric
from softkin.nonconformity import Nonconformity, Outputs, Part, outlier_score
from softkin.scorer import Scorer, read_network
from softkin.scorer_graph import representation_output
from softkin_training import baselines
from softkin_training.network_head import FEATURES, Head, find_head, with_features
from softkin_training.rows import parts_of
from softkin_training.scratch import written_to
from softkin_training.whitening import whitenings_of

Floats = NDArray[np.float64]
NEIGHBORS = max(baselines.KTH, baselines.DKNN_K)


@dataclass(frozen=True, kw_only=True)
class Own:
    """What the detector answers for B rows."""

    outlier_score: Floats
    p_value: Floats
    predicted_class: NDArray[np.int32]
    credibility: Floats


class Subject:
    """A bundle under test: what scores rows, and what is known about its network.

    Args:
        loaded: the bundle.

    Attributes:
        detector: of the bundle.
        layers: names of its layers.
        neighbors: per layer the bank's rows, without padding and as they were before any whitening, which is none of
            other scores' doing; empty where they are prototypes, which are too few and too unequal to be counted as
            neighbours.
        labels: `[N]` their classes.
        head: the network's last linear layer; None where it is not to be found.
    """

    def __init__(self, loaded: Bundle) -> None:
        self.loaded = loaded
        self.layers = [layer.name for layer in loaded.manifest.layers]
        real = loaded.bank.labels != PADDING_LABEL
        self.labels = loaded.bank.labels[real].astype(np.int64)
        model = read_network(loaded.path / bundles.MODEL, loaded.bank)
        self._whitenings = whitenings_of(model)
        plain = not loaded.manifest.condensed_from
        self.neighbors = {n: self._bank_rows(n, np.flatnonzero(real)) for n in loaded.bank.layers} if plain else {}
        self.head: Head | None = find_head(model)
        also = [representation_output(name) for name in self.layers]
        with tempfile.TemporaryDirectory() as folder:
            path = loaded.path / bundles.MODEL
            if self.head is not None:
                path, also = Path(folder) / bundles.MODEL, [*also, FEATURES]
                with written_to(path.parent, "network"):
                    onnx.save(with_features(model, self.head), path)
            self._scorer = Scorer(path, loaded.bank, loaded.path / bundles.BANK, also=also)
        self.detector = Detector(loaded, scorer=self._scorer)

    def _bank_rows(self, layer: str, which: NDArray[np.integer]) -> NDArray[np.float32]:
        """The bank's tiled rows at `which` as they were before any whitening, made part by part."""
        bank = self.loaded.bank.layers[layer]
        rows = np.empty((len(which), bank.dim), np.float32)
        for part in parts_of(len(which)):
            rows[part] = self.unwhitened(layer, bank.representations(which[part]))
        return rows

    def metric(self, layer: str) -> Metric:
        """Metric of a layer's representations as they were before any whitening."""
        return self._whitenings[layer].metric if layer in self._whitenings else self.loaded.bank.layers[layer].metric

    def unwhitened(self, layer: str, z_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Representations of a layer as they were before any whitening."""
        return self._whitenings[layer].undo(z_BD) if layer in self._whitenings else z_BD

    def own(self, outputs: Outputs) -> Own:
        """The same numbers as `Detector.score`, without running the rows again."""
        form = nonconformity_of(self.detector.manifest, self.loaded.bank, self.loaded.calibration.references)
        a_BC = form(outputs)
        predicted = form.predict(outputs, a_BC)
        score = outlier_score(a_BC, predicted)
        p, class_p = self.loaded.calibration.marginal(score, a_BC, None)
        return Own(outlier_score=score, p_value=p, predicted_class=predicted, credibility=credibility(class_p))

    def check(self, x: NDArray[np.generic], what: str) -> NDArray[np.generic]:
        """The rows, if the detector takes them.

        Raises:
            InvalidInputError: it does not; calls them `what`.
        """
        try:
            return self.detector.check(x)
        except InvalidInputError as e:
            raise InvalidInputError(what, e.message) from None

    def run(self, x: NDArray[np.generic]) -> Pass:
        """Raw inputs, which `check` has taken, through network and bank."""
        return Pass(self, *self._scorer.run_with_others(x))

    @cached_property
    def golden(self) -> Pass | None:
        """The bundle's probe rows, which come from its bank; None where it has none."""
        inputs = self.loaded.golden.inputs
        return self.run(inputs) if len(inputs) else None

    def nonconformity(
        self, parts: tuple[Part, ...] = (), references: Mapping[str, Floats] | None = None
    ) -> Nonconformity:
        """The joint form of `parts` over this bundle's masses; without parts, an object that computes single parts."""
        return Nonconformity(
            form="joint" if parts else "density",
            class_weights=self.loaded.bank.class_weights,
            layer_weights=np.array([layer.weight for layer in self.detector.manifest.layers]),
            parts=parts,
            references=references or {},
        )


class Pass:
    """One set of rows, and what network and bank make of it."""

    def __init__(self, subject: Subject, outputs: Outputs, found: Mapping[str, NDArray[np.float32]]) -> None:
        self.outputs = outputs
        self.z = {name: subject.unwhitened(name, found[representation_output(name)]) for name in subject.layers}
        self.features = found.get(FEATURES)
        self._subject = subject
        self._nearest: dict[str, tuple[Floats, NDArray[np.int64]]] = {}

    @property
    def logits(self) -> NDArray[np.float32]:
        """Logits `[B, C]`."""
        assert self.outputs.logits is not None, "asked of a network only"
        return self.outputs.logits

    def nearest(self, layer: str) -> tuple[Floats, NDArray[np.int64]]:
        """Distances `[B, K]` and rows of the `NEIGHBORS` nearest bank rows in a layer; found once."""
        if layer not in self._nearest:
            self._nearest[layer] = baselines.nearest(self.z[layer], self._subject.neighbors[layer], NEIGHBORS)
        return self._nearest[layer]

    def kth(self, layer: str) -> Floats:
        """`[B]` distance to the k-th nearest bank row."""
        distances, _ = self.nearest(layer)
        return distances[:, min(baselines.KTH, distances.shape[1]) - 1]

    def dknn_nonconformity(self) -> Floats:
        """Nonconformity `[B, C]` of DkNN, see `baselines.dknn_nonconformity`."""
        found = [self.nearest(n)[1][:, : baselines.DKNN_K] for n in self.z]
        s = self._subject
        return np.asarray(sum(baselines.other_labels(s.labels[rows], s.loaded.bank.num_classes) for rows in found))
