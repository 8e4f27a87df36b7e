"""Which candidates run on which banks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import candidates
import peers
from banks import TEMPERATURE
from workers import Build

SOFTKIN, ANY_TEMPERATURE = "softkin", "softkin, any temperature"
COLD = "softkin, T = 0.001"
"""Where most exponentials underflow."""
INT8, FLOAT16 = "softkin, int8", "softkin, float16"
NEAREST = "softkin + exact top-50"
OURS = (SOFTKIN, ANY_TEMPERATURE, COLD, INT8, FLOAT16, NEAREST)
CEILING, READ = "MatMul of the same shape", "bank read once"
CEILING_LARGE = "MatMul, in large pages"
FLAT, HNSW = "FAISS flat, k = 50", "FAISS HNSW, k = 50 (approximate)"
BRUTE, KNN = "scikit-learn brute, k = 50", "pytorch-ood KNN, k = 50"
SEGMENTS, ONE_HOT, ATTENTION = "torch, segments", "torch, softmax @ one-hot", "torch, attention"
ONLY_CPU = (INT8, CEILING_LARGE, FLAT, HNSW, BRUTE, KNN)
ONLY_CUDA = (FLOAT16,)


def builds(device: str) -> dict[str, Build]:
    """Every candidate on that device; those that are of another are left out."""
    softkin = partial(candidates.softkin, device=device)
    torch = {SEGMENTS: peers.torch_segments, ONE_HOT: peers.torch_one_hot, ATTENTION: peers.torch_attention}
    found: dict[str, Build] = {
        SOFTKIN: softkin,
        ANY_TEMPERATURE: partial(softkin, bounded=False),
        COLD: partial(softkin, temperature_factor=0.001 / TEMPERATURE),
        INT8: partial(softkin, precision="int8"),
        FLOAT16: partial(softkin, precision="float16"),
        NEAREST: partial(softkin, neighbors=candidates.K),
        CEILING: candidates.matmul if device == "cpu" else partial(candidates.torch_matmul, device=device),
        CEILING_LARGE: partial(candidates.matmul, large_pages=True),
        READ: partial(candidates.read_once, device=device),
        FLAT: peers.faiss_flat,
        HNSW: peers.faiss_hnsw,
        BRUTE: peers.sklearn_brute,
        KNN: peers.pytorch_ood_knn,
        **{name: partial(build, device=device) for name, build in torch.items()},
    }
    elsewhere = ONLY_CUDA if device == "cpu" else ONLY_CPU
    return {name: build for name, build in found.items() if name not in elsewhere}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One bank and the batch sizes to try on it."""

    rows: int
    dim: int
    classes: int
    batches: tuple[int, ...] = (1, 32, 256)
    rounds: int = 31
    """At most; fewer once `seconds` have gone by."""
    seconds: float
    """For each batch size."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Candidate -> why."""

    @property
    def title(self) -> str:
        """For tables."""
        return f"{self.rows:,} x {self.dim}, {self.classes} classes"


CASES = {
    "60k-128": Case(rows=60_000, dim=128, classes=10, seconds=24),
    "60k-512": Case(
        rows=60_000, dim=512, classes=100, seconds=24, left_out={HNSW: "time: a minute to build the index"}
    ),
    "1m-128": Case(
        rows=1_000_000,
        dim=128,
        classes=1000,
        batches=(1, 32),
        seconds=35,
        left_out={
            HNSW: "time: many minutes to build the index",
            ONE_HOT: "memory: the one-hot labels take 4 GB",
            ATTENTION: "memory: the one-hot labels take 4 GB",
        },
    ),
}
