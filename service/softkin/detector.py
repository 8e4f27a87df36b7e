"""The public object: a bundle, loaded and proven, that scores arrays."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softkin import bundle as bundles
from softkin import conformal, verdicts
from softkin.arguments import as_float, as_inputs, as_num_neighbors, as_path, as_rows, as_seed
from softkin.bank import PADDING_LABEL, Bank
from softkin.bundle import Bundle
from softkin.bundle_arrays import Golden
from softkin.cancellation import Cancellation
from softkin.certificate import DEFAULT_CONFIDENCE
from softkin.chunks import SLICE_ROWS
from softkin.conformal import SurpriseLines
from softkin.errors import BundleError
from softkin.manifest import Manifest
from softkin.mass import logsumexp
from softkin.nonconformity import Nonconformity, Outputs, outlier_score
from softkin.scorer import BOUNDARY, LOGITS, Nearest, Scorer
from softkin.scores import Neighbors, Parts, RowScores, Scores
from softkin.shards import ShardedScorer
from softkin.verdicts import Guarantee, Rule

GOLDEN_TOLERANCE = 1e-3
"""Largest relative change of a golden outlier score that another device or library version may cause."""

RULES_KEPT = 256
"""Rules that are kept for the next request: callers choose alpha, and most choose the same few."""


class Detector:
    """Scores inputs against a bundle. `score` may be called from several threads.

    Args:
        bundle: from `softkin.bundle.read_bundle`.
        device: as for `load`.
        threads: as for `load`.
        scorer: of the bundle's model and bank, shared with whoever made it; `device` and `threads` do not count then.
            None: one of its own.
        row_names: as for `load`.

    Attributes:
        manifest: what the detector is.
        has_logits: whether the model is a classifier; False for bare embeddings.
        digest: sha256 of the manifest, hexadecimal.
        device: where it really runs, `cuda` or `cpu`; one for each shard, with commas between.
        smallest_p_value: 1 / (n + 1); no input can be flagged at an alpha below it.
        calibration_scores: `[n]` sorted ascending: outlier scores behind p-values, for `softkin.drift`.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        threads: int | None = None,
        scorer: Scorer | None = None,
        row_names: bool = True,
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.digest = bundle.digest
        self.smallest_p_value = conformal.smallest_p_value(self.manifest.calibration_size)
        self.calibration_scores = bundle.calibration.outlier_scores
        self._calibration = bundle.calibration
        bank = bundle.bank.without_rows()
        self._bank: Bank = bank if row_names else replace(bank, names=None)
        self._scorer = scorer or ShardedScorer(
            bundle.path / bundles.MODEL, bundle.bank, bundle.path / bundles.BANK, device=device, threads=threads
        )
        self.device = self._scorer.device
        self.has_logits = self._scorer.has_logits
        if self._scorer.input_name != self.manifest.input_name:
            raise BundleError(
                f"{bundle.path / bundles.MODEL}: its input is {self._scorer.input_name!r}, the manifest says "
                f"{self.manifest.input_name!r}"
            )
        for part, output, there in (
            ("energy", LOGITS, self.has_logits),
            ("boundary_distance", BOUNDARY, self._scorer.has_boundary),
        ):
            if part in self.manifest.parts and not there:
                raise BundleError(
                    f"{bundle.path / bundles.MODEL}: has no {output}, which the part {part!r} needs; build it again"
                )
        self._nonconformity = nonconformity_of(self.manifest, bundle.bank, bundle.calibration.references)
        self._layer_surprise = {
            layer: SurpriseLines.through(terms) for layer, terms in bundle.calibration.layer_terms.items()
        }
        # Bound to the manifest and not to self: a cycle would keep the session's memory until garbage is collected.
        self._rules = lru_cache(maxsize=RULES_KEPT)(partial(_make_rule, self.manifest))
        self._prove(bundle)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        row_names: bool = True,
    ) -> Detector:
        """Read a bundle, verify it, start its session and check it against its golden rows.

        Args:
            path: bundle directory.
            device: `cuda` or `cuda:N` refuses to run anywhere else; `auto` takes CUDA where it really works, else the
                CPU; several with commas between hold a shard of the bank each.
            threads: compute threads on the CPU, for each shard; the cores this process may use when None.
            row_names: whether neighbours come with what they are called, where the bundle has it.

        Raises:
            InvalidInputError: no such device, more shards than the bank has tiles, or what is no path.
            BundleError: damaged, inconsistent, of another format, or it does not score its golden rows as when built.
            DeviceError: `cuda` was asked for and is not there.
        """
        bundle = bundles.read_bundle(as_path("path", path))
        found = cls(bundle, device=device, threads=threads, row_names=row_names)
        bundle.refuse_replaced()  # the session reads model and bank by their paths
        return found

    def __repr__(self) -> str:
        m = self.manifest
        return (
            f"<Detector {m.name} version {m.version}: {len(m.classes)} classes, {m.bank_size} bank rows, "
            f"{m.calibration_size} calibration rows, on {self.device}>"
        )

    def score(
        self,
        x: ArrayLike,
        *,
        alpha: float | None = None,
        guarantee: Guarantee = "marginal",
        confidence: float = DEFAULT_CONFIDENCE,
        smoothing_seed: int | None = None,
        num_neighbors: int = 0,
        cancellation: Cancellation | None = None,
    ) -> Scores:
        """Score rows; each on its own: a row's scores do not depend on the rows beside it.

        Only verdicts with guarantee `false_discovery_rate` do, which are about a whole batch.

        Args:
            x: `[B, *manifest.input_shape]` of dtype `manifest.input_dtype`, in either byte order, B >= 1, finite.
            alpha: rate to accept, in [smallest_p_value, 1); the manifest's default when None.
            guarantee: what alpha promises: see `softkin.verdicts`.
            confidence: of `certified`, and of the bound that the error budget states, in (0, 1).
            smoothing_seed: in [0, 2^64): p-values are smoothed at random, exact at ties too, and the same for the same
                row and seed; None: deterministic p-values, conservative at ties.
            num_neighbors: how many nearest training rows per row and layer to return as evidence, together with the
                respects in which each row is strange; 0 for neither.
            cancellation: stops the call within one chunk of the bank.

        Raises:
            InvalidInputError: names the argument, the value and what is allowed; or the model takes no such values.
            DeviceError: the device failed while running.
            CancelledError: `cancellation` was used.
        """
        rule = self.rule(alpha=alpha, guarantee=guarantee, confidence=confidence, smoothed=smoothing_seed is not None)
        smoothing_seed, num_neighbors = as_seed(smoothing_seed), as_num_neighbors(num_neighbors)
        x = as_rows(x)
        # Here and not in `check`, which must refuse the other byte order: builders recognise rows by their bytes.
        x = self.check(x.astype(x.dtype.newbyteorder("="), copy=False))
        found = self.score_rows(x, num_neighbors=num_neighbors, cancellation=cancellation)
        started = time.perf_counter()
        scores = self.judge(found, rule, x, smoothing_seed=smoothing_seed)
        scores.stage_seconds.update(infer=found.infer_seconds, calibrate=time.perf_counter() - started)
        return scores

    def rule(
        self,
        *,
        alpha: float | None = None,
        guarantee: Guarantee = "marginal",
        confidence: float = DEFAULT_CONFIDENCE,
        smoothed: bool = False,
    ) -> Rule:
        """How verdicts are made, if the calibration rows can honour it; arguments as for `score`.

        Raises:
            InvalidInputError: names the argument, the value and what is allowed.
        """
        guarantee = verdicts.check_guarantee(guarantee)
        alpha = self.manifest.default_alpha if alpha is None else as_float("alpha", alpha)
        return self._rules(alpha, guarantee, as_float("confidence", confidence), smoothed)

    def check(self, x: NDArray[np.generic]) -> NDArray[np.generic]:
        """The rows, in C order, if this detector takes them.

        Raises:
            InvalidInputError: wrong dtype or shape, no rows, NaN or infinity.
        """
        return as_inputs(x, self.manifest.input_dtype, self.manifest.input_shape)

    def score_rows(
        self, x: NDArray[np.generic], *, num_neighbors: int = 0, cancellation: Cancellation | None = None
    ) -> RowScores:
        """What does not depend on the verdict asked for; rows of several callers may go through together.

        Args:
            x: rows that `check` gave back.
            num_neighbors: as for `score`.
            cancellation: as for `score`.

        Raises:
            DeviceError: the device failed while running.
            CancelledError: `cancellation` was used.
        """
        started = time.perf_counter()
        outputs, neighbors = self._infer(x, num_neighbors, cancellation)
        inferred = time.perf_counter() - started
        a_BC = self._nonconformity(outputs)
        predicted = self._nonconformity.predict(outputs, a_BC)
        return RowScores(
            nonconformity=a_BC,
            predicted_class=predicted,
            outlier_score=outlier_score(a_BC, predicted),
            neighbors=neighbors,
            parts=self._parts(outputs, predicted) if num_neighbors else None,
            infer_seconds=inferred,
        )

    def judge(
        self,
        found: RowScores,
        rule: Rule,
        x: NDArray[np.generic],
        *,
        smoothing_seed: int | None = None,
    ) -> Scores:
        """P-values and verdicts of rows.

        Args:
            found: by `score_rows`.
            rule: by `rule`.
            x: the rows; read for smoothed p-values only.
            smoothing_seed: as for `score`; given where the rule is smoothed.
        """
        u_B = None if smoothing_seed is None else conformal.row_uniforms(smoothing_seed, x)
        score, predicted, a_BC = found.outlier_score, found.predicted_class, found.nonconformity
        if rule.guarantee == "class_conditional":
            p, class_p = self._calibration.class_conditional(score, predicted, a_BC, u_B)
        else:
            p, class_p = self._calibration.marginal(score, a_BC, u_B)
        found_verdicts = rule.decide(p)
        return Scores(
            outlier_score=score,
            p_value=p,
            is_outlier=found_verdicts.is_outlier,
            predicted_class=predicted,
            credibility=conformal.credibility(class_p),
            confidence=conformal.confidence(class_p),
            class_p_values=class_p,
            budget=rule.budget(
                found_verdicts,
                detector=self.manifest.name,
                version=self.manifest.version,
                digest=self.digest,
                device=self.device,
            ),
            neighbors=found.neighbors,
            parts=found.parts,
        )

    def warm_up(self, rows: int = SLICE_ROWS) -> None:
        """Run a batch of so many rows once, so that no request pays for first-time allocation."""
        self.score(np.zeros((rows, *self.manifest.input_shape), self.manifest.input_dtype))

    def outputs(self, x: NDArray[np.generic]) -> Outputs:
        """Logits and class masses of checked inputs, for calibration and analysis; see `Outputs`."""
        return self._scorer.run(self.check(x))

    def _infer(
        self, x: NDArray[np.generic], k: int, cancellation: Cancellation | None
    ) -> tuple[Outputs, Neighbors | None]:
        if not k:
            return self._scorer.run(x, cancellation), None
        outputs, nearest = self._scorer.run_with_nearest(x, min(k, self.manifest.bank_size), cancellation)
        return outputs, self._neighbors(nearest, outputs)

    def _neighbors(self, nearest: Nearest, outputs: Outputs) -> Neighbors:
        bank = self._bank
        # Where a layer overflows, no bank row is nearer than another: onnxruntime then gives any rows, even padding.
        none_BL1 = ~np.isfinite(outputs.masses).all(axis=2, keepdims=True)
        rows = np.where(none_BL1, 0, nearest.rows)
        contributions = np.where(none_BL1, -np.inf, nearest.contributions)
        masses_BLC = np.where(none_BL1, 0.0, outputs.masses.astype(np.float64))
        total_BL1 = logsumexp(masses_BLC, axis=2)[:, :, None]
        temperature_L = np.array([layer.temperature for layer in bank.layers.values()])
        # Condensed banks have weights and ids of their own in every layer.
        layer_L = np.arange(len(bank.layers)) if len(bank.ids) > 1 else np.zeros(len(bank.layers), int)
        at = (layer_L[None, :, None], rows)
        log_weights = np.log(bank.weights[at].astype(np.float64))
        distances = temperature_L[None, :, None] * (log_weights - contributions)
        ids = np.where(none_BL1, -1, bank.ids[at])
        return Neighbors(
            layers=tuple(bank.layers),
            ids=ids,
            labels=np.where(none_BL1, PADDING_LABEL, bank.labels[rows]),
            distances=np.maximum(distances, 0.0).astype(np.float32),
            shares=np.minimum(np.exp(contributions - total_BL1), 1.0).astype(np.float32),
            names={} if bank.names is None else bank.names.find(ids),
        )

    def _parts(self, outputs: Outputs, predicted_B: NDArray[np.int32]) -> Parts:
        terms_BP = self._nonconformity.terms(outputs, predicted_B)
        if self.manifest.parts:
            return Parts(names=self.manifest.parts, values=terms_BP)
        surprises = [lines(term) for lines, term in zip(self._layer_surprise.values(), terms_BP.T, strict=True)]
        return Parts(names=tuple(self._layer_surprise), values=np.stack(surprises, axis=1))

    def _prove(self, bundle: Bundle) -> None:
        """Score the golden rows: a bundle that answers differently here than where it was built must not serve."""
        x = bundle.golden.inputs
        zeros = np.zeros((1, *self.manifest.input_shape), self.manifest.input_dtype)
        _refuse_other_classes(self._scorer.run(x[:1] if len(x) else zeros), bundle.path / bundles.MODEL)
        if not len(x):
            return
        found = self.score(x).outlier_score
        refuse_difference(found, bundle.golden, f"{bundle.path / bundles.GOLDEN} on {self.device}")


def _make_rule(manifest: Manifest, alpha: float, guarantee: Guarantee, confidence: float, smoothed: bool) -> Rule:
    return verdicts.check_rule(
        guarantee,
        alpha=alpha,
        confidence=confidence,
        calibration_size=manifest.calibration_size,
        class_sizes=manifest.predicted_class_rows,
        classes=manifest.classes,
        smoothed=smoothed,
    )


def _refuse_other_classes(outputs: Outputs, model: Path) -> None:
    """Refuse a model of other classes than the bank's: some graphs do not declare how many, so it takes a run."""
    classes = outputs.masses.shape[2]
    for name, array in ((LOGITS, outputs.logits), (BOUNDARY, outputs.boundary)):
        if array is not None and array.shape[1:] != (classes,):
            numbers = "x".join(map(str, array.shape[1:]))
            raise BundleError(f"{model}: has {numbers} {name}, the bank has {classes} classes; build it again")


def refuse_difference(found: NDArray[np.floating], golden: Golden, where: str) -> None:
    """Compare outlier scores of the golden rows with those of the builder.

    Raises:
        BundleError: one differs by more than `GOLDEN_TOLERANCE`.
    """
    expected = golden.outlier_scores
    off = np.abs(found - expected) / np.maximum(np.abs(expected), 1.0)
    if not (off <= GOLDEN_TOLERANCE).all():  # NaN fails too
        row = int(np.nan_to_num(off, nan=np.inf).argmax())
        raise BundleError(
            f"{where}: golden row {row} scores {found[row]:.6g} here, {expected[row]:.6g} when built (relative "
            f"tolerance {GOLDEN_TOLERANCE:g}); it cannot be used here"
        )


def nonconformity_of(manifest: Manifest, bank: Bank, references: dict[str, NDArray[np.float64]]) -> Nonconformity:
    """The nonconformity that a manifest describes."""
    return Nonconformity(
        form=manifest.nonconformity,  # type: ignore[arg-type]  # parse_manifest checked it
        class_weights=bank.class_weights,
        layer_weights=np.array([layer.weight for layer in manifest.layers]),
        parts=manifest.parts,  # type: ignore[arg-type]
        references=references,
    )
