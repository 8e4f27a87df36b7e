"""Where onnxruntime puts the nodes of the scorer's graph: what is left on the CPU costs a copy at every call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workers import Build, in_own_process


@contextmanager
def session_entry(key: str, value: str) -> Iterator[None]:
    """Sessions that start inside have one more configuration entry; only benchmarks reach in like this."""
    import onnxruntime as ort

    real = ort.SessionOptions

    def options() -> Any:
        made = real()
        made.add_session_config_entry(key, value)
        return made

    ort.SessionOptions = options
    try:
        yield
    finally:
        ort.SessionOptions = real


def place(builds: dict[str, Build], arguments: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Per candidate, per execution provider: how many nodes, and how many of each operator.

    Args:
        builds: candidates that expose their session.
        arguments: for each.
    """
    return {name: in_own_process(_nodes, build, arguments) for name, build in builds.items()}


def _nodes(build: Build, arguments: dict[str, Any]) -> dict[str, Any]:
    with session_entry("session.record_ep_graph_assignment_info", "1"):
        session = build(**arguments).session
    found: dict[str, Counter[str]] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        found.setdefault(subgraph.ep_name, Counter()).update(node.op_type for node in subgraph.get_nodes())
    return {name: {"nodes": ops.total(), "operators": dict(ops.most_common())} for name, ops in found.items()}
