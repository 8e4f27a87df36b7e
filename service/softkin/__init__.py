"""softkin: tells which inputs of a classifier look unlike its training data, at a false-alarm rate you choose.

    from softkin import Detector, Client
    scores = Detector.load("bundle").score(x)
    scores = Client("localhost:50051").score(x)

Importing softkin loads nothing but its errors; what a name needs is loaded when it is first touched: NumPy for scores,
onnxruntime for `Detector`, grpc for `Client` and `AsyncClient`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from softkin.errors import (
    AuthenticationError,
    BundleError,
    ConflictError,
    DataError,
    DeviceError,
    ExportError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    RecipeError,
    SoftkinError,
    StateError,
    UnavailableError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from softkin.async_client import AsyncClient
    from softkin.client import Client
    from softkin.detector import Detector
    from softkin.scores import ErrorBudget, Neighbors, Parts, Scores

__version__: str

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "BundleError",
    "Client",
    "ConflictError",
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
    "PreconditionError",
    "RecipeError",
    "Scores",
    "SoftkinError",
    "StateError",
    "UnavailableError",
    "UnsupportedError",
    "__version__",
]

_LAZY = {
    "AsyncClient": ("softkin.async_client", "client"),
    "Client": ("softkin.client", "client"),
    "Detector": ("softkin.detector", "service"),
    **dict.fromkeys(("ErrorBudget", "Neighbors", "Parts", "Scores"), ("softkin.scores", "client")),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("softkin")
    if name not in _LAZY:
        raise AttributeError(f"module 'softkin' has no attribute {name!r}")
    module, extra = _LAZY[name]
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as e:
        raise ImportError(f"softkin.{name} needs {e.name}: pip install 'softkin[{extra}]'") from e
