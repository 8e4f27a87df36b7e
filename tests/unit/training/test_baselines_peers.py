"""Our baselines against those of pytorch-ood, which the Makefile installs without what it asks for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from softkin import mass
from softkin_training import baselines, detection_metrics
from softkin_training.feature_baselines import FDBD, react, scale
from softkin_training.fitted_baselines import Mahalanobis, RelativeMahalanobis, ViM, vim_origin

pytestmark = pytest.mark.training

CLASSES, WIDTH = 4, 12


@pytest.fixture(scope="module")
def peers():
    """Imports one of its modules without the package's own `__init__`, which wants torchvision for data sets.

    Empty modules stand for the two packages above; the detectors run as published.
    """
    before = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "pytorch_ood"}
    for name in before:
        del sys.modules[name]
    for name in ("pytorch_ood", "pytorch_ood.detector"):
        spec = importlib.util.find_spec(name)
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = list(spec.submodule_search_locations)
    yield lambda name: importlib.import_module(f"pytorch_ood.{name}")
    for name in [n for n in sys.modules if n.split(".")[0] == "pytorch_ood"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture(scope="module")
def rows():
    """Bank features with labels, features to score, and a last layer."""
    rng = np.random.default_rng(0)
    centers, y = rng.normal(size=(CLASSES, WIDTH)) * 2, np.arange(400) % CLASSES
    bank = np.maximum(centers[y] + rng.normal(size=(400, WIDTH)), 0.01).astype(np.float32)
    x = np.maximum(rng.normal(size=(50, WIDTH)) * 2, 0.01).astype(np.float32)
    w, b = (0.4 * rng.normal(size=(CLASSES, WIDTH))).astype(np.float32), rng.normal(size=CLASSES).astype(np.float32)
    return bank, y, x, w, b


@pytest.mark.parametrize(
    ("module", "name", "ours"),
    [
        ("softmax", "MaxSoftmax", baselines.max_softmax),
        ("energy", "EnergyBased", mass.energy),
        ("maxlogit", "MaxLogit", baselines.max_logit),
        # Theirs is the mean over classes, ours the sum of the paper.
        ("gen", "GEN", lambda logits: baselines.gen(logits) / CLASSES),
    ],
)
def test_scores_of_logits_agree(peers, rows, module, name, ours):
    """To float32."""
    _, _, x, w, b = rows
    logits = x @ w.T + b

    theirs = getattr(peers(f"detector.{module}"), name)(None).predict_logits(torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(ours(logits), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Loky-backed parallel loops")
def test_kth_neighbour_agrees(peers, rows):
    """Euclidean distance of normalised features to the 50th neighbour."""
    bank, y, x, _, _ = rows
    knn = peers("detector.knn").KNN(None, k=50).fit_features(torch.from_numpy(bank), torch.from_numpy(y))

    theirs = knn.predict_features(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(baselines.kth_neighbor(x, bank), theirs, rtol=1e-4)


def test_mahalanobis_agrees(peers, rows):
    """Theirs is half the distance under the scatter, which is not divided by the number of rows."""
    bank, y, x, _, _ = rows
    peer = peers("detector.mahalanobis").Mahalanobis(None).fit_features(torch.from_numpy(bank), torch.from_numpy(y))

    theirs = peer.predict_features(torch.from_numpy(x)).numpy()
    ours = Mahalanobis.fit(bank, y).score(x)
    np.testing.assert_allclose(ours / (2 * len(bank)), theirs, rtol=1e-3)
    np.testing.assert_array_equal(rankdata(ours), rankdata(theirs))


def test_relative_mahalanobis_agrees(peers, rows):
    """Theirs is the distance under scatters, which are not divided by the number of rows."""
    bank, y, x, _, _ = rows
    peer = peers("detector.rmd").RMD(None).fit_features(torch.from_numpy(bank), torch.from_numpy(y))

    theirs = peer.predict_features(torch.from_numpy(x)).numpy()
    ours = RelativeMahalanobis.fit(bank, y).score(x)
    np.testing.assert_allclose(ours / len(bank), theirs, rtol=1e-3, atol=1e-6)


def test_react_agrees(peers, rows):
    """With the threshold that theirs takes from the bank's features."""
    bank, y, x, w, b = rows
    layer = linear(w, b)
    peer = peers("detector.react").ReAct(None, layer).fit_feature_maps(torch.from_numpy(bank), torch.from_numpy(y))

    theirs = peer.predict_feature_maps(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(react(x, float(np.quantile(bank, 0.9)), w, b), theirs, rtol=1e-4, atol=1e-5)


def test_scale_agrees(peers, rows):
    """Theirs takes maps; a feature is a map of one pixel."""
    _, _, x, w, b = rows
    layer = linear(w, b)
    peer = peers("detector.scale").SCALE(None, lambda maps: layer(maps.flatten(1)), percentile=0.65)

    theirs = peer.predict_feature_maps(torch.from_numpy(x)[:, :, None, None]).numpy()
    np.testing.assert_allclose(scale(x, w, b, 0.65), theirs, rtol=1e-4, atol=1e-5)


def test_fdbd_agrees(peers, rows):
    """With the mean of the bank's features."""
    bank, _, x, w, b = rows
    peer = peers("detector.fdbd").fDBD(torch.nn.Identity(), linear(w, b)).fit_features(torch.from_numpy(bank))

    theirs = peer.predict_features(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(FDBD(mean=bank.mean(axis=0), weight=w, bias=b).score(x), theirs, rtol=1e-4)


def linear(w, b):
    """A last layer."""
    layer = torch.nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(w))
        layer.bias.copy_(torch.from_numpy(b))
    return layer.requires_grad_(requires_grad=False)


def test_vim_agrees(peers, rows):
    """With the same principal dimension."""
    bank, y, x, w, b = rows
    peer = peers("detector.vim").ViM(None, d=5, w=torch.from_numpy(w), b=torch.from_numpy(b))
    theirs = peer.fit_features(torch.from_numpy(bank), torch.from_numpy(y)).predict_features(torch.from_numpy(x))

    logits = bank @ w.T + b
    ours = ViM.fit(bank - vim_origin(w, b), bank, logits.max(axis=1), w, b, principal_dim=5)
    assert ours.alpha == pytest.approx(peer.alpha, rel=1e-3)
    np.testing.assert_allclose(ours.score(x, x @ w.T + b), theirs.numpy(), rtol=1e-3, atol=1e-3)


def test_metrics_agree(peers, rows):
    """AUROC and FPR95 (outliers positive) exactly; AUPR but for the trapezoid that theirs lays between points."""
    bank, _, x, _, _ = rows
    inliers, outliers = bank[:, 0].round(1).astype(float), x[:, 0].round(1).astype(float)
    functions = peers("metrics")
    scores = torch.from_numpy(np.r_[inliers, outliers])
    labels = torch.from_numpy(np.r_[np.zeros(len(inliers)), -np.ones(len(outliers))]).long()

    def theirs(metric):
        return float(next(iter(metric.update(scores, labels).compute().values())))

    assert detection_metrics.auroc(inliers, outliers) == pytest.approx(theirs(functions.AUROC()), abs=1e-6)
    assert detection_metrics.fpr95(inliers, outliers) == pytest.approx(theirs(functions.FPRAtTPR()), abs=1e-6)
    assert detection_metrics.aupr_out(inliers, outliers) == pytest.approx(theirs(functions.AUPR()), abs=0.05)
