"""Every score that a report compares, made from one bundle: its network, its bank, and one calibration for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from softkin import mass
from softkin.nonconformity import CLASS_PARTS, PARTS, TAILS, Nonconformity, Outputs, Part, fit_references, outlier_score
from softkin_training import baselines, feature_baselines
from softkin_training.expose import ENERGY_TOLERANCE
from softkin_training.feature_baselines import FDBD
from softkin_training.fitted_baselines import RelativeMahalanobis, ViM, summed_distances, vim_origin
from softkin_training.rows import parts_of
from softkin_training.split import FEWEST_REFERENCES, reference_size
from softkin_training.subject import Pass, Subject

Floats = NDArray[np.float64]
JOINTS: tuple[tuple[Part, ...], ...] = (
    ("posterior", "density", "density_last"),
    ("energy", "density"),
    ("class_density", "boundary_distance"),
)
"""Fusions that a report compares beside the bundle's own."""
TYPICAL_ROWS = 500
"""At most so many bank rows are used to measure the typical distance of a layer."""
FEATURES_TOLERANCE = 1e-3
"""Relative difference up to which a layer counts as the features that the logits are made of."""
OURS = "softkin, same bank"
COMPARING: frozenset[Part] = frozenset({"posterior", "posterior_hidden"})
"""Parts that compare classes, so that there must be two of them."""
OF_LOGITS: frozenset[Part] = frozenset({"energy", "boundary_distance"})
"""Parts made of logits, or of the layer that makes them."""
SAME_IN_ONE_LAYER: frozenset[Part] = frozenset({"density", "density_last"})
"""Parts that a single layer makes one: a fusion of both would count it twice."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One score."""

    title: str
    source: str
    """Where it comes from."""
    score: Callable[[Pass], Floats]
    """`[B]`; higher = more outlying."""
    calibrates: NDArray[np.bool_] | None = None
    """`[n]` which calibration rows calibrate it: those it was not fitted to; None for all."""
    p_values: Literal["conformal", "complement", "none"] = "conformal"
    """How p-values are made: from calibration scores; as one minus the score (a credibility); or not at all."""


def compared_scores(
    subject: Subject, calibration: Pass | None, true_classes: NDArray[np.int64] | None, seed: int
) -> tuple[dict[str, Compared], list[str]]:
    """Every score that this bundle allows, beside its own.

    Args:
        subject: the bundle.
        calibration: the calibration rows, None where they are not at hand.
        true_classes: `[n]` theirs, None where unknown.
        seed: of the split of the calibration rows that some scores need.

    Returns:
        Scores by short name, and what is left out and why.
    """
    notes: list[str] = []
    joints = _possible_joints(subject)
    fitted = ["joint scores"] * bool(joints) + ["ReAct and fDBD"] * subject.detector.has_logits
    reference = _reference_rows(calibration, seed, ", ".join(fitted), notes)
    head = _readable_head(subject, notes)
    fitting = _fitting(calibration, reference)
    fdbd = _fdbd(head, fitting)
    energy = _has_energy(subject, notes)
    scores = _parts(subject) | _joints(subject, joints, calibration, reference, fdbd, energy)
    if subject.neighbors:
        scores |= _neighbors(subject, calibration, true_classes) | _fitted(subject, head, notes)
    else:
        notes.append("The bank holds prototypes: what counts neighbours or fits Gaussians to rows is left out.")
    if subject.detector.has_logits:
        scores |= _reshaped(head, fitting, reference, fdbd, notes) | _of_logits(energy)
    else:
        notes.append("Bare embeddings have no logits: scores made of logits are left out.")
    if _one_class(subject):
        notes.append("The detector has one class: scores that compare classes are left out.")
    return scores, notes


def _one_class(subject: Subject) -> bool:
    return subject.loaded.bank.num_classes < 2


def _called(layer: str) -> str:
    """A layer's name in a title: that of a Sequential, 5, would read as the k of `k-th neighbour distance, 5`."""
    return f"layer {layer}" if layer[:1].isdigit() else layer


def _has_energy(subject: Subject, notes: list[str]) -> bool:
    """Whether rows differ in energy: that of log probabilities is 0, and only its rounding would be compared."""
    if not subject.detector.has_logits:
        return False
    golden = subject.golden
    finite = None if golden is None else golden.logits[golden.outputs.finite]
    if finite is None or len(finite) < 2 or np.ptp(mass.energy(finite)) > ENERGY_TOLERANCE:
        return True
    notes.append(
        "Energy and max logit are left out: the network gives probabilities or their log, whose energy is the same for "
        "every row and whose max logit is max softmax. What the softmax is made of has both: fit --output NAME."
    )
    return False


def _possible_joints(subject: Subject) -> list[tuple[Part, ...]]:
    """The fusions whose parts this bundle has, each once, and that are not its own."""

    def possible(parts: tuple[Part, ...]) -> bool:
        twice = len(subject.layers) == 1 and set(parts) >= SAME_IN_ONE_LAYER
        no_logits = not subject.detector.has_logits and bool(OF_LOGITS & set(parts))
        no_classes = _one_class(subject) and bool(COMPARING & set(parts))
        own = set(parts) == set(subject.detector.manifest.parts)
        return not (twice or no_logits or no_classes or own)

    return [parts for parts in JOINTS if possible(parts)]


def _reference_rows(calibration: Pass | None, seed: int, fitted: str, notes: list[str]) -> NDArray[np.bool_] | None:
    """Which calibration rows the scores `fitted` are fitted to, so that the others calibrate them."""
    if calibration is None:
        left_out = f", and {fitted}, which are fitted to such rows, are left out" if fitted else ""
        notes.append(
            f"Without calibration rows no score but the bundle's own has false alarms and caught{left_out}. Give the "
            "rows with --calibration FILE."
        )
        return None
    if not fitted:
        return None
    rows = len(calibration.outputs)
    reference = np.zeros(rows, bool)
    reference[np.random.default_rng(seed).permutation(rows)[: reference_size(rows)]] = True
    if reference.sum() < FEWEST_REFERENCES:
        notes.append(f"{rows} calibration rows are too few for {fitted}, which need 3: left out.")
        return None
    return reference


def _parts(subject: Subject) -> dict[str, Compared]:
    plain, last = subject.nonconformity(), subject.layers[-1]
    titles = {"density_last": f"density, {_called(last)}"}

    def score(part: Part) -> Callable[[Pass], Floats]:
        return lambda p: plain.part_score(part, p.outputs)

    own = subject.detector.manifest.nonconformity
    same = {own, "energy"} | ({"density_last", "posterior_hidden"} if len(subject.layers) == 1 else set())
    same.add("boundary_distance")  # which is fDBD
    if _one_class(subject):
        same |= COMPARING
    # Class parts and tails need reference rows; they and what they measure the hidden layers by are in joint scores.
    inside = {*CLASS_PARTS, *TAILS, "density_hidden"}
    return {
        part: Compared(title=titles.get(part, part.replace("_", " ")), source=OURS, score=score(part))
        for part in PARTS
        if part not in same | inside
    }


def _joints(
    subject: Subject,
    joints: list[tuple[Part, ...]],
    calibration: Pass | None,
    reference: NDArray[np.bool_] | None,
    fdbd: FDBD | None,
    energy: bool,
) -> dict[str, Compared]:
    if calibration is None or reference is None:
        return {}

    def with_boundary(p: Pass) -> Outputs:
        """The outputs with distances to boundaries, which bundles without that part lack.

        That of the predicted class stands for all: no other is looked at, and of thousands of classes it would take
        minutes.
        """
        assert fdbd is not None
        assert p.features is not None
        of_predicted = fdbd.of_class(p.features, p.logits.argmax(axis=1)).astype(np.float32)
        return replace(p.outputs, boundary=np.broadcast_to(of_predicted[:, None], p.logits.shape))

    plain, found = subject.nonconformity(), {}
    for parts in joints:
        if ("energy" in parts and not energy) or ("boundary_distance" in parts and fdbd is None):
            continue
        outputs = with_boundary if "boundary_distance" in parts else lambda p: p.outputs
        at_reference = outputs(calibration).take(reference)
        joint = subject.nonconformity(parts, fit_references(plain, parts, at_reference))
        found["_".join(("joint", *parts))] = Compared(
            title=f"joint: {' + '.join(p.replace('_', ' ') for p in parts)}",
            source=OURS,
            score=_at_predicted(joint, outputs),
            calibrates=~reference,
        )
    return found


def _at_predicted(form: Nonconformity, outputs: Callable[[Pass], Outputs]) -> Callable[[Pass], Floats]:
    def score(p: Pass) -> Floats:
        a_BC = form(outputs(p))
        return outlier_score(a_BC, form.predict(p.outputs, a_BC))

    return score


def _neighbors(
    subject: Subject, calibration: Pass | None, true_classes: NDArray[np.int64] | None
) -> dict[str, Compared]:
    last, sun = subject.layers[-1], "Sun et al. 2022"
    true: Floats | None = None
    if calibration is not None and true_classes is not None:
        true = np.take_along_axis(calibration.dknn_nonconformity(), true_classes[:, None], axis=1)[:, 0]

    def dknn(p: Pass) -> Floats:
        if true is not None:
            return baselines.dknn_credibility(p.dknn_nonconformity(), true)
        # Credibility is a monotone function of the smallest count: the same ranking without a calibration set.
        return np.asarray(p.dknn_nonconformity().min(axis=1))

    found = {
        "kth_neighbor": Compared(
            title=f"k-th neighbour distance, {_called(last)}", source=sun, score=lambda p: p.kth(last)
        )
    }
    if len(subject.layers) > 1:
        typical = np.array([_typical_distance(subject.neighbors[n]) for n in subject.layers])
        found["kth_neighbor_all"] = Compared(
            title="k-th neighbour distance, all layers",
            source=f"{sun}, summed over layers",
            score=lambda p: summed_distances(np.stack([p.kth(n) for n in subject.layers]), typical),
        )
    if not _one_class(subject):
        found["dknn"] = Compared(
            title="DkNN credibility",
            source="Papernot & McDaniel 2018",
            score=dknn,
            p_values="none" if true is None else "complement",
        )
    return found


def _typical_distance(rows: NDArray[np.float32]) -> float:
    """Median distance of bank rows to their k-th nearest other row."""
    some = rows[:: -(-len(rows) // TYPICAL_ROWS)]  # from all over the bank, which is in order of class
    return float(np.median(baselines.kth_neighbor(some, rows, baselines.KTH + 1)))


def _fitted(subject: Subject, head: _ReadableHead | None, notes: list[str]) -> dict[str, Compared]:
    last = subject.layers[-1]
    gaussians = RelativeMahalanobis.fit(subject.neighbors[last], subject.labels)
    rows = "on the bank's rows" + (" of unit length" if subject.metric(last) == "cosine" else "")
    found = {
        "mahalanobis": Compared(
            title=f"Mahalanobis, {_called(last)}",
            source=f"Lee et al. 2018, {rows}",
            score=lambda p: gaussians.classes.score(p.z[last]),
        ),
    }
    if not _one_class(subject):
        found["relative_mahalanobis"] = Compared(
            title=f"relative Mahalanobis, {_called(last)}",
            source=f"Ren et al. 2021, {rows}",
            score=lambda p: gaussians.score(p.z[last]),
        )
    vim = None if head is None else _vim(subject, head, notes)
    if vim is not None:
        found["vim"] = _of_features("ViM", "Wang et al. 2022", vim.score)
    return found


def _vim(subject: Subject, head: _ReadableHead, notes: list[str]) -> ViM | None:
    """ViM fitted to the bank's rows of the layer that the logits are made of; None where the bank lacks it."""
    h, golden, origin = head.features, head.golden, vim_origin(head.weight, head.bias)
    for name, rows in subject.neighbors.items():
        metric = subject.metric(name)
        seen = mass.unit_rows(h) if metric == "cosine" else h
        z = golden.z[name]
        if z.shape != seen.shape or not np.allclose(z, seen, atol=FEATURES_TOLERANCE * float(np.abs(seen).max())):
            continue
        if metric == "cosine":
            return ViM.fit(rows, h, golden.logits.max(axis=1), head.weight, head.bias)
        parts = [rows[part] for part in parts_of(len(rows))]
        largest = np.concatenate([(part @ head.weight.T + head.bias).max(axis=1) for part in parts])
        centered = np.concatenate([(part - origin).astype(np.float32) for part in parts])
        return ViM.fit(centered, rows, largest, head.weight, head.bias)
    notes.append(
        "ViM is left out: the bank does not hold the layer that the logits are made of, or holds it projected."
    )
    return None


@dataclass(frozen=True, kw_only=True)
class _ReadableHead:
    """The network's last linear layer, and the features of the probe rows that it reads."""

    weight: Floats
    bias: Floats
    golden: Pass
    features: NDArray[np.float32]
    """`[R, D]`, of the probe rows."""


def _readable_head(subject: Subject, notes: list[str]) -> _ReadableHead | None:
    if not subject.detector.has_logits:
        return None
    head, golden = subject.head, subject.golden
    if golden is None:
        notes.append("ViM, fDBD, ReAct and SCALE are left out: the bundle has no probe rows; build it again.")
        return None
    if head is None or golden.features is None or golden.features.ndim != 2:
        notes.append(
            "ViM, fDBD, ReAct and SCALE are left out: the network does not end in a linear layer that could be read."
        )
        return None
    return _ReadableHead(weight=head.weight, bias=head.bias, golden=golden, features=golden.features)


def _fitting(calibration: Pass | None, reference: NDArray[np.bool_] | None) -> NDArray[np.float32] | None:
    """`[M, D]` features of the reference rows on which the network is finite; None where there are none."""
    if calibration is None or reference is None or calibration.features is None:
        return None
    features = calibration.features[reference & calibration.outputs.finite]
    return features if len(features) else None


def _fdbd(head: _ReadableHead | None, fitting: NDArray[np.float32] | None) -> FDBD | None:
    if head is None or fitting is None or len(head.weight) < 2:
        return None
    return FDBD(mean=fitting.mean(axis=0, dtype=np.float64), weight=head.weight, bias=head.bias)


def _reshaped(
    head: _ReadableHead | None,
    fitting: NDArray[np.float32] | None,
    reference: NDArray[np.bool_] | None,
    fdbd: FDBD | None,
    notes: list[str],
) -> dict[str, Compared]:
    if head is None:
        return {}
    w, b, found = head.weight, head.bias, {}
    if fitting is not None:
        assert reference is not None
        clip = float(np.quantile(fitting, feature_baselines.REACT_QUANTILE))
        if fdbd is not None:
            found["fdbd"] = _of_features("fDBD", "Liu & Qin 2024", lambda h, _: fdbd.score(h), ~reference)
        found["react"] = _of_features(
            "ReAct", "Sun, Guo & Li 2021", lambda h, _: feature_baselines.react(h, clip, w, b), ~reference
        )
    if head.features.min() < 0:
        notes.append("SCALE is left out: it takes features that a ReLU has passed, and these are negative in part.")
    else:
        found["scale"] = _of_features("SCALE", "Xu et al. 2024", lambda h, _: feature_baselines.scale(h, w, b))
    return found


def _of_features(
    title: str,
    source: str,
    score: Callable[[NDArray[np.float32], NDArray[np.float32]], Floats],
    calibrates: NDArray[np.bool_] | None = None,
) -> Compared:
    """A score of features and logits."""

    def of(p: Pass) -> Floats:
        assert p.features is not None
        return score(p.features, p.logits)

    return Compared(title=title, source=source, score=of, calibrates=calibrates)


def _of_logits(energy: bool) -> dict[str, Compared]:
    def of(title: str, source: str, score: Callable[[NDArray[np.float32]], Floats]) -> Compared:
        return Compared(title=title, source=source, score=lambda p: score(p.logits))

    of_energy = {
        "energy": of("energy", "Liu et al. 2020", mass.energy),
        "max_logit": of("max logit", "Hendrycks et al. 2022", baselines.max_logit),
    }
    return (of_energy if energy else {}) | {
        "gen": of("GEN", "Liu et al. 2023", baselines.gen),
        "max_softmax": of("max softmax", "Hendrycks & Gimpel 2017", baselines.max_softmax),
    }
