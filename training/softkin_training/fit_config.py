"""What `softkin-train fit` can be told: a recipe's `[detector]` section and what a recipe says elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from softkin.errors import InvalidInputError, listed
from softkin.nonconformity import Part
from softkin_training.config import DetectorConfig
from softkin_training.config_section import Width
from softkin_training.expose import EMBEDDING
from softkin_training.layer_metrics import without_layer
from softkin_training.recipe_faults import NAME, allowed, value_at

OPTION_NAMES = {"joint_parts": "parts"}
"""Options that the command line names otherwise than a recipe."""
DEFAULT_PARTS: tuple[Part, ...] = ("density", "class_density", "energy")
"""Parts of a joint form that names none (docs/decisions/0028); without energy where the logits have none."""


class FitConfig(DetectorConfig):
    """A recipe's `[detector]` section, with its defaults, and what a recipe has beside it.

    The joint form may name no parts: it has `DEFAULT_PARTS` then.
    """

    name: Annotated[str, Field(pattern=NAME)]
    version: Annotated[str, Field(pattern=NAME)] = "1"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the split, the projections and the choice of bank rows."""
    standardize: bool | None = None
    """Whether the columns of the rows are standardised where the rows are a layer; None: see `columns_of`."""
    bank_rows: Width = 20000
    """Training rows in the bank; all of them where there are fewer."""

    @model_validator(mode="after")
    def _check_parts(self) -> FitConfig:
        if self.joint_parts and self.nonconformity != "joint":
            raise ValueError("joint_parts|belong to nonconformity = 'joint' and only to it")
        if unknown := without_layer(self.metric, self.layers):
            raise ValueError(f"metric|{listed(unknown)} not among the layers {listed(self.layers)}")
        return self


def fit_config(**options: Any) -> FitConfig:
    """Check options.

    Raises:
        InvalidInputError: names the first option that is unfit, its value and what is allowed.
    """
    try:
        return FitConfig(**options)
    except ValidationError as e:
        fault = e.errors()[0]
        if fault["type"] == "value_error":  # of two options that contradict each other, see config.py
            key, _, message = str(fault["ctx"]["error"]).rpartition("|")
            key = key or str(fault["loc"][0])  # of a check of this one alone
        else:
            key, message = str(fault["loc"][0]), allowed(fault, FitConfig, value_at(options, fault["loc"]))
        value = f"got {_typed(options[key])}" if key in options else "is not set"
        raise InvalidInputError(OPTION_NAMES.get(key, key), f"{value}: {message}") from None


def classifier_config(*, layers: Sequence[str], **options: Any) -> FitConfig:
    """`fit_config` with the defaults for a classifier made elsewhere (docs/decisions/0028).

    Representations are whitened; the lengths of the last of `layers` count, and of the others directions alone; the
    form is joint.

    Raises:
        InvalidInputError: as `fit_config`.
    """
    metric = {**dict.fromkeys(layers, "cosine"), layers[-1]: "squared_euclidean"}
    return fit_config(layers=list(layers), **{"metric": metric, "whiten": True, "nonconformity": "joint", **options})


def vectors_config(**options: Any) -> FitConfig:
    """`fit_config` with the defaults for bare vectors: whitened (docs/decisions/0028).

    Raises:
        InvalidInputError: as `fit_config`.
    """
    return fit_config(layers=[EMBEDDING], **{"whiten": True, **options})


def _typed(value: Any) -> str:
    return listed(value) if isinstance(value, list) else repr(value)


def default_name(path: str | Path) -> str:
    """A name for a detector, made of the name of a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem).strip("._-")[:63] or "detector"
