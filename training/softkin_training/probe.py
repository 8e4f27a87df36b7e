"""Entanglement of every hidden layer while training, on rows that stay the same.

Values of SNNL compare only at equal row counts and class mix, so each epoch is measured on one fixed set of test rows.
What Frosst et al. 2019 report: entanglement of all layers but the last first falls, then rises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from softkin.mass import Metric
from softkin_training.entanglement import entanglement
from softkin_training.models import Classifier
from softkin_training.rows import Rows, members_of_each


@dataclass(frozen=True)
class Probe:
    """A fixed set of rows and how to compare them. Measuring draws no random numbers and changes no weights."""

    rows: Rows
    metric: Metric

    @torch.inference_mode()
    def measure(self, model: Classifier) -> dict[str, dict[str, float | None]]:
        """Layer -> value, chance, ratio and temperature, see `Entanglement`; leaves the model in eval mode.

        The ratio is None where it is not defined.
        """
        model.eval()
        device = next(model.parameters()).device
        _, hidden = model.forward_with_hidden(torch.from_numpy(self.rows.x).to(device))
        y = torch.from_numpy(self.rows.y).to(device)
        found: dict[str, dict[str, Any]] = {}
        for layer, z in hidden.items():
            e = entanglement(z, y, metric=self.metric)
            ratio = None if math.isnan(e.ratio) else e.ratio
            found[layer] = {"value": e.value, "chance": e.chance, "ratio": ratio, "temperature": e.temperature}
        return found


def choose_probe_rows(rows: Rows, num_rows: int, seed: int) -> Rows:
    """Equally many rows of each class, about `num_rows` in all, drawn without replacement.

    A class that has fewer brings what it has, and at least 2 where it has them: a row needs a partner.

    Args:
        rows: to choose from.
        num_rows: at least 1.
        seed: equal seeds choose equal rows.
    """
    rng = np.random.default_rng(seed)
    classes = members_of_each(rows.y)
    each = max(2, num_rows // len(classes))
    chosen = [rng.choice(members, min(each, len(members)), replace=False) for members in classes]
    return rows.take(np.sort(np.concatenate(chosen)))
