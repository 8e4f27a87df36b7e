"""softkin: tells which inputs of a classifier look unlike its training data, at a false-alarm rate you choose.

    from softkin import Detector, Client
    scores = Detector.load("bundle").score(x)
    scores = Client("localhost:50051").score(x)

Importing softkin loads neither grpc, onnxruntime nor torch; `Detector`, `Client` and `AsyncClient` do when they are
first touched.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from softkin.errors import (
    AuthenticationError,
    BundleError,
    DataError,
    DeviceError,
    ExportError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    RecipeError,
    SoftkinError,
    StateError,
    UnavailableError,
)
from softkin.scores import ErrorBudget, Neighbors, Parts, Scores

if TYPE_CHECKING:
    from softkin.async_client import AsyncClient
    from softkin.client import Client
    from softkin.detector import Detector

__version__ = version("softkin")

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "BundleError",
    "Client",
    "DataError",
    "Detector",
    "DeviceError",
    "ErrorBudget",
    "ExportError",
    "InvalidInputError",
    "Neighbors",
    "NotFoundError",
    "OverloadedError",
    "Parts",
    "RecipeError",
    "Scores",
    "SoftkinError",
    "StateError",
    "UnavailableError",
    "__version__",
]

_LAZY = {
    "AsyncClient": ("softkin.async_client", "client"),
    "Client": ("softkin.client", "client"),
    "Detector": ("softkin.detector", "service"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'softkin' has no attribute {name!r}")
    module, extra = _LAZY[name]
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as e:
        raise ImportError(f"softkin.{name} needs {e.name}: pip install 'softkin[{extra}]'") from e
