"""The metric of every layer of a detector: one for all, or one each.

Cosine compares the directions of representations, squared Euclidean distances their lengths too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from softkin.mass import METRICS, Metric

Metrics = Metric | Mapping[str, Metric]
"""One for every layer, or one per layer."""


def metric_of(metrics: Metrics, layer: str) -> Metric:
    """The metric of one layer."""
    return metrics if isinstance(metrics, str) else metrics[layer]


def checked_metrics(value: object) -> Metric | dict[str, Metric]:
    """What a recipe says about metrics, if it is a metric or a table of them.

    Raises:
        ValueError: it is neither.
    """
    if value in METRICS:
        return value
    if isinstance(value, dict) and value and all(isinstance(v, str) and v in METRICS for v in value.values()):
        return {str(k): v for k, v in value.items()}
    allowed = " or ".join(repr(m) for m in METRICS)
    raise ValueError(f"must be {allowed}{'' if isinstance(value, str) else ', one for all layers or one for each'}")


def without_metric(metrics: Metrics, layers: Sequence[str]) -> list[str]:
    """The layers that have none."""
    return [] if isinstance(metrics, str) else [layer for layer in layers if layer not in metrics]


def without_layer(metrics: Metrics, layers: Sequence[str]) -> list[str]:
    """What has a metric and is none of the layers."""
    return [] if isinstance(metrics, str) else [name for name in metrics if name not in layers]
