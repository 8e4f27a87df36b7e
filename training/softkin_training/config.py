"""A run as one recipe: strict TOML in, frozen models out, and every error names recipe, section and key.

    recipe = load_recipe("digits", ["training.epochs=5", "loss.weight=-0.3"])

Values are strict: a string never becomes a number, an unknown key is an error, and keys are checked against each other.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from softkin.errors import RecipeError, listed, reason_of
from softkin.mass import Metric
from softkin.nonconformity import Form, Part
from softkin_training.config_section import Positive, Section, Width, require
from softkin_training.data_config import AugmentationConfig, DataConfig
from softkin_training.layer_metrics import checked_metrics, metric_of, without_layer, without_metric
from softkin_training.model_config import ModelConfig
from softkin_training.recipe_faults import LOWER_NAME, NAME, describe
from softkin_training.split import rows_for_alpha

BUILTIN_RECIPES = Path(__file__).parent / "recipes"


class LossConfig(Section):
    """The soft nearest neighbor term: objective = cross-entropy + sum over layers of weight * SNNL."""

    layers: list[str] = []
    """Hidden layers that carry the term; empty = plain cross-entropy. Leave out the one before the logits."""
    weight: float | dict[str, float] = 0.0
    """One number for every layer, or one per layer; negative entangles the classes, positive separates them."""
    metric: Metric = "cosine"
    temperature: Literal["minimized", "fixed", "learned"] = "minimized"
    """`minimized`: kept at the minimiser of the loss on every batch (eq. 2); `fixed`: at `fixed_temperature`;
    `learned`: the authors' published algorithm with its faults, see `published_snnl`."""
    fixed_temperature: Positive = 100.0
    """In units of the metric; read only where temperature = 'fixed'."""
    initial_temperature: Positive = 100.0
    """In units of the metric; read only where temperature = 'learned'."""
    temperature_step: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Of the gradient step on initial_temperature / temperature per batch, 0 = none, as in the authors' MNIST
    demonstration; read only where temperature = 'learned'."""
    max_side: Annotated[int, Field(ge=0)] = 0
    """Larger maps are averaged down to at most this many rows and columns before; 0 = none is, as published."""

    def weight_of(self, layer: str) -> float:
        """Weight of one of `layers`."""
        return self.weight[layer] if isinstance(self.weight, dict) else self.weight

    @field_validator("weight", mode="plain")
    @classmethod
    def _check_weight(cls, value: object) -> float | dict[str, float]:
        def is_number(x: object) -> bool:
            return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)

        if isinstance(value, dict) and all(is_number(v) for v in value.values()):
            return {str(k): float(v) for k, v in value.items()}
        if isinstance(value, (int, float)) and is_number(value):
            return float(value)
        raise ValueError("must be a finite number, or a table of one finite number per layer of loss.layers")


class TrainingConfig(Section):
    """The optimiser (AdamW, linear warm-up, then cosine decay to zero) and where it runs."""

    epochs: Width
    batch_size: Annotated[int, Field(ge=2)]
    """Rows per step, over all devices together; SNNL is an estimate over the batch, so values at different sizes do
    not compare."""
    learning_rate: Positive
    """The peak, reached after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """As Lightning Fabric names it; the SNNL term is computed in float32 whatever stands here."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Width = 1
    """Processes on this machine, each with a device of its own; they share every batch and train one model."""
    cpu_threads: Annotated[int, Field(ge=0)] = 0
    """Threads of torch while training, 0 = as many as torch takes by itself and the process may use; part of what makes
    weights repeat bit for bit."""
    cuda_graph: bool = True
    """On one GPU, replay the step of a built-in network as a CUDA graph; not in 16-mixed, nor with a learned
    temperature. Faster, and takes more of the GPU's memory."""
    checkpoint_every_epochs: Width = 1
    probe_rows: Annotated[int, Field(ge=0)] = 512
    """Test rows, equally many of each class, on which every hidden layer's entanglement is recorded each epoch; 0 =
    not recorded. The weights are the same with and without."""

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        enough = self.batch_size >= 2 * self.devices
        require(enough, "devices", f"must leave each at least 2 rows of batch_size = {self.batch_size}")
        cuda_needed = self.precision == "16-mixed"
        require(not cuda_needed or self.accelerator == "cuda", "precision", "16-mixed needs accelerator = 'cuda'")
        return self


class DetectorConfig(Section):
    """What the bank holds and how a row is scored."""

    layers: list[str]
    """Hidden layers whose representations are compared."""
    metric: Metric | dict[str, Metric] = "cosine"
    """One for every layer, or one per layer: cosine compares directions, squared Euclidean distances lengths too."""
    max_dim: Width = 256
    """Wider layers are randomly projected to this many numbers."""
    max_side: Annotated[int, Field(ge=0)] = 1
    """Larger feature maps are averaged down to at most this many rows and columns first; 1: each map to its mean, 0:
    none is."""
    nonconformity: Form = "density"
    joint_parts: list[Part] = []
    """Parts of the joint form; read only there."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Accepted false-alarm rate."""
    bank_rows: Width
    """Training rows in the bank; all of them where there are fewer."""
    whiten: bool = False
    """Compare representations in units of the spread within classes; then distances are squared Euclidean ones."""
    temperature_scale: Positive = 0.25
    """Temperature of every layer, in units of the median distance between nearest bank rows."""
    condense: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """How many training rows a bank row stands for; above 1 the bank holds weighted prototypes."""
    precision: Literal["float32", "float16", "int8", "auto"] = "float32"
    """What the bank is stored in; `auto`: the fewest bits that keep within max_p_value_change."""
    max_p_value_change: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Error budget of precision and condense: largest change of a calibration row's p-value; 1 = no limit."""

    def metric_of(self, layer: str) -> Metric:
        """Metric of one of `layers`."""
        return metric_of(self.metric, layer)

    _check_metric = field_validator("metric", mode="plain")(checked_metrics)

    @model_validator(mode="after")
    def _check(self) -> DetectorConfig:
        require(bool(self.layers), "layers", "must name at least one hidden layer")
        lacking = without_metric(self.metric, self.layers)
        require(not lacking, "metric", f"lacks a metric for {listed(lacking)}; give one for each, or one for all")
        require(len(set(self.joint_parts)) == len(self.joint_parts), "joint_parts", "must not repeat a part")
        limited = self.precision != "auto" or self.max_p_value_change < 1
        require(limited, "max_p_value_change", "must be set, below 1, for precision = 'auto', which it decides")
        return self


class Recipe(Section):
    """Everything that decides a run; equal recipes on equal data give equal weights on CPU."""

    name: Annotated[str, Field(pattern=LOWER_NAME)]
    version: Annotated[str, Field(pattern=NAME)] = "1"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataConfig
    model: ModelConfig
    loss: LossConfig = LossConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    training: TrainingConfig
    detector: DetectorConfig

    @property
    def hidden_layers(self) -> tuple[str, ...]:
        """Names of the model's hidden layers; of a network of your own those that loss and detector name."""
        named = dict.fromkeys([*self.detector.layers, *self.loss.layers])
        return tuple(named) if self.model.kind == "import" else self.model.hidden_layers

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as JSON-able values."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _check_layers(self) -> Recipe:
        existing = self.hidden_layers
        for key, layers in {"loss.layers": self.loss.layers, "detector.layers": self.detector.layers}.items():
            require(len(set(layers)) == len(layers), key, "must not repeat a layer")
            unknown = [x for x in layers if x not in existing]
            require(not unknown, key, f"{unknown} not among the hidden layers of this {self.model.kind}: {existing}")
        # A metric of a layer that is not compared does no harm: so detector.layers can be overridden by itself.
        unknown = without_layer(self.detector.metric, existing)
        named = f"{unknown} not among the hidden layers of this {self.model.kind}: {existing}"
        require(not unknown, "detector.metric", named)
        needs_parts = self.detector.nonconformity == "joint" and not self.detector.joint_parts
        must_name = "must name at least one part for nonconformity = 'joint'"
        require(not needs_parts, "detector.joint_parts", must_name)
        enough = rows_for_alpha(self.detector.alpha, self.detector.nonconformity)
        fits = self.data.calibration_rows >= enough
        needed = f"must be at least {enough}, so that alpha = {self.detector.alpha:g} can be a p-value"
        if self.detector.nonconformity == "joint":
            needed += " after the joint form set half of the rows aside"
        require(fits, "data.calibration_rows", f"{needed}; or raise detector.alpha")
        if isinstance(self.loss.weight, dict):
            same = self.loss.weight.keys() == set(self.loss.layers)
            require(same, "loss.weight", f"needs exactly one number for each of loss.layers = {self.loss.layers}")
        return self


def load_recipe(path_or_builtin_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides, check everything.

    Args:
        path_or_builtin_name: a TOML file, or a bare name such as `digits` for a recipe that ships with softkin.
        overrides: `section.key=value`; the value is read as TOML, and as plain text where it is not TOML or the key
            holds text.

    Raises:
        RecipeError: no such recipe, not TOML, an unknown or missing key, a value of the wrong type or out of range, or
            two keys that contradict each other. One line per fault: recipe, section.key, value, what is allowed.
    """
    path = _find(path_or_builtin_name)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(
            f"{path}: cannot be read ({reason_of(e)}); give a TOML file or one of {listed(_builtin_names())}"
        ) from None
    except tomllib.TOMLDecodeError as e:
        raise RecipeError(f"{path}: not valid TOML: {e}") from None
    texts: dict[tuple[int | str, ...], str] = {}
    for override in overrides:
        keys, text = _split_override(override)
        _put(raw, keys, _toml_value(text), override)
        texts[keys] = text
    try:
        return Recipe.model_validate(raw)
    except ValidationError as e:
        # A key of text, whose text reads like a number or a date.
        misread = [fault["loc"] for fault in e.errors() if fault["type"] == "string_type" and fault["loc"] in texts]
    for loc in misread:
        _put(raw, loc, texts[loc], "")
    try:
        return Recipe.model_validate(raw)
    except ValidationError as e:
        faults = [describe(fault, raw, path_or_builtin_name, texts, Recipe) for fault in e.errors()]
        raise RecipeError("\n".join(faults)) from None


def _builtin_names() -> list[str]:
    return sorted(p.stem for p in BUILTIN_RECIPES.glob("*.toml"))


def _find(name: str | Path) -> Path:
    if isinstance(name, str) and name in _builtin_names():
        return BUILTIN_RECIPES / f"{name}.toml"
    path = Path(name)
    if not os.path.isfile(path):  # of a name too long for any, Path would raise
        raise RecipeError(f"{name}: no such recipe; give a TOML file or one of {listed(_builtin_names())}")
    return path


def _split_override(override: str) -> tuple[tuple[str, ...], str]:
    dotted, equals, text = override.partition("=")
    keys = tuple(k.strip() for k in dotted.split("."))
    if not equals or not all(keys):
        raise RecipeError(f"--set {override!r}: must read section.key=value, for instance training.epochs=5")
    return keys, text.strip()


def _put(raw: dict[str, Any], keys: Sequence[Any], value: Any, override: str) -> None:
    table = raw
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override!r}: {key} is the value {table!r}, not a section")
    table[keys[-1]] = value


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text
