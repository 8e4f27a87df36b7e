"""What people use today. Those marked k = 50 return neighbours; the others return class masses or shares."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from candidates import K, load
from workers import Call


def faiss_flat(*, bank: str, labels: str, temperature: float) -> Call:
    """FAISS IndexFlatIP, k = 50: exact inner product search."""
    import faiss

    z, _ = load(bank, labels)
    index = faiss.IndexFlatIP(z.shape[1])
    index.add(z)
    return lambda x: index.search(x, K)


def faiss_hnsw(*, bank: str, labels: str, temperature: float) -> Call:
    """FAISS HNSW32, efSearch 64, k = 50: approximate."""
    import faiss

    z, _ = load(bank, labels)
    index = faiss.IndexHNSWFlat(z.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(z)
    index.hnsw.efSearch = 64
    return lambda x: index.search(x, K)


def sklearn_brute(*, bank: str, labels: str, temperature: float) -> Call:
    """scikit-learn NearestNeighbors, brute force, k = 50."""
    from sklearn.neighbors import NearestNeighbors

    z, _ = load(bank, labels)
    index = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(z)
    return lambda x: index.kneighbors(x)


def pytorch_ood_knn(*, bank: str, labels: str, temperature: float) -> Call:
    """The detector KNN of pytorch-ood, k = 50, on features: distance to the 50th neighbour.

    The package depends on torchvision, whose wheels on PyPI are for CUDA and do not import beside a torch for CPUs. KNN
    needs none of it: `pip install --no-deps pytorch-ood` is enough, and the two packages above its module stand here as
    empty modules, so that their `__init__` does not import the data sets, which do. KNN itself runs as published.
    """
    if importlib.util.find_spec("pytorch_ood") is None:
        raise ImportError("pytorch-ood is not installed: pip install --no-deps pytorch-ood")
    for name in ("pytorch_ood", "pytorch_ood.detector"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"{name} is not a package in this version of pytorch-ood")
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = list(spec.submodule_search_locations)
    import torch

    # It asks scikit-learn for processes, which a worker may not start; brute force uses OpenMP's threads all the same.
    warnings.filterwarnings("ignore", message="Loky-backed parallel loops")
    z, y = load(bank, labels)
    knn = importlib.import_module("pytorch_ood.detector.knn").KNN(None, k=K)
    knn.fit_features(torch.from_numpy(z), torch.from_numpy(y))
    return lambda x: knn.predict_features(torch.from_numpy(x))


def torch_segments(*, bank: str, labels: str, temperature: float, device: str = "cpu") -> Call:
    """PyTorch: one product, exponentials, a sum per class by index_add."""
    import torch

    z, y = load(bank, labels)
    rows, label, classes = torch.from_numpy(z).to(device), torch.from_numpy(y).to(device), int(y.max()) + 1

    def masses(x: Any) -> Any:
        e = torch.exp((x @ rows.T - 1) / temperature)
        return torch.zeros(len(x), classes, device=device).index_add_(1, label, e).log_()

    return _torch_call(masses, device)


def torch_one_hot(*, bank: str, labels: str, temperature: float, device: str = "cpu") -> Call:
    """PyTorch: softmax over the bank, times the one-hot labels: class shares."""
    import torch

    rows, one_hot = _rows_and_one_hot(bank, labels, device)
    return _torch_call(lambda x: torch.softmax(x @ rows.T / temperature, dim=1) @ one_hot, device)


def torch_attention(*, bank: str, labels: str, temperature: float, device: str = "cpu") -> Call:
    """PyTorch scaled_dot_product_attention with one-hot values: class shares."""
    from torch.nn import functional

    rows, one_hot = _rows_and_one_hot(bank, labels, device)

    def shares(x: Any) -> Any:
        return functional.scaled_dot_product_attention(x[None], rows[None], one_hot[None], scale=1 / temperature)

    return _torch_call(shares, device)


def _rows_and_one_hot(bank: str, labels: str, device: str) -> tuple[Any, Any]:
    import torch
    from torch.nn import functional

    z, y = load(bank, labels)
    return torch.from_numpy(z).to(device), functional.one_hot(torch.from_numpy(y)).float().to(device)


def _torch_call(function: Any, device: str) -> Call:
    """From NumPy to NumPy, as the scorer's: on CUDA the copies there and back count, and end the wait."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False

    def call(x: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return function(torch.from_numpy(x).to(device)).cpu()

    call.device = device  # type: ignore[attr-defined]
    return call
