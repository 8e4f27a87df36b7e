"""A run as one recipe: strict TOML in, frozen models out, and every error names file, section and key.

    recipe = load_recipe("digits", ["training.epochs=5", "loss.weight=-0.3"])

Values are strict: a string never becomes a number, an unknown key is an error, and keys are checked against each other.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from softkin.bank import Precision
from softkin.errors import RecipeError
from softkin.mass import Metric
from softkin.nonconformity import Form, Part

MODEL_KEYS = {"hidden": "mlp", "channels": "cnn", "dense": "cnn", "path": "import", "arguments": "import"}
"""Keys of [model] that one kind alone reads."""
TABLES = ("parquet", "csv", "hub")
IMAGES = ("npz", "folder", "parquet", "hub")
DATA_KEYS: dict[str, tuple[str, ...]] = {
    "test_path": ("parquet", "csv"),
    "subset": ("hub",),
    "revision": ("hub",),
    "train_split": ("hub",),
    "test_split": ("hub",),
    "label_column": TABLES,
    "input_columns": TABLES,
    "image_size": IMAGES,
    "image_mode": IMAGES,
}
"""Keys of [data] that some sources alone read."""
BUILTIN_RECIPES = Path(__file__).parent / "recipes"

Width = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class DataConfig(_Section):
    """Where the rows come from and how they are split."""

    source: Literal["digits", "npz", "folder", "parquet", "csv", "hub"]
    """`digits`: scikit-learn's 1,797 8x8 digits, needs no file; `npz`: a file of arrays; `folder`: images, one folder
    per class; `parquet`, `csv`: tables; `hub`: a data set of the Hugging Face hub. The last four need the extra
    `datasets`."""
    path: str = ""
    """npz with x_train, y_train, x_test, y_test, class_names; the folder; the table, or tables by a pattern; or the
    data set's OWNER/NAME."""
    test_path: str = ""
    """Table of test rows; parquet and csv."""
    subset: str = ""
    """The data set's subset, which the hub also calls configuration; hub only."""
    revision: str = ""
    """Branch, tag or commit; hub only."""
    train_split: str = "train"
    """Hub only."""
    test_split: str = "test"
    """Hub only; empty where there is none, then test_rows are set aside."""
    label_column: str = "label"
    """Tables and hub."""
    input_columns: list[str] = []
    """Tables and hub: columns that hold the inputs; empty = all but the labels."""
    image_size: list[Width] = []
    """[H, W] to which images are resized; empty = as they are, and all must be of one size."""
    image_mode: Literal["RGB", "L"] = "RGB"
    """What images are converted to: colour, rows [H, W, 3], or grey, rows [H, W]."""
    known_classes: list[Annotated[int, Field(ge=0)]] = []
    """Classes to train on, relabelled 0..K-1 in this order; empty = all. The others become outliers."""
    calibration_rows: Width
    """Rows taken from the training split for calibration; the smallest possible p-value is 1 / (this + 1)."""
    test_rows: Annotated[int, Field(ge=0)] = 0
    """Rows held out for testing where the source brings no test split."""
    outliers: dict[str, str] = {}
    """Name -> npz whose x_test, or folder whose images, are outliers; for evaluation only."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        _require(len(set(self.known_classes)) == len(self.known_classes), "known_classes", "must not repeat a class")
        _require(len(self.known_classes) != 1, "known_classes", "needs at least 2 classes, or none for all of them")
        _require(len(self.image_size) in (0, 2), "image_size", "must be [height, width], or empty")
        for key, sources in DATA_KEYS.items():
            unread = self.source not in sources and getattr(self, key) != DataConfig.model_fields[key].get_default(
                call_default_factory=True
            )
            _require(not unread, key, f"belongs to source = {' or '.join(map(repr, sources))}; leave it out")
        if self.source == "digits":
            _require(not self.path, "path", "belongs to source = 'npz'; leave it out for the embedded digits")
            _require(self.test_rows > 0, "test_rows", "must be at least 1: the digits bring no test split of their own")
        if self.source == "npz":
            _require(self.test_rows == 0, "test_rows", "must be 0: an npz file brings its own x_test")
        if self.source in ("parquet", "csv", "hub"):
            own, key = (self.test_split, "test_split") if self.source == "hub" else (self.test_path, "test_path")
            _require(bool(own) != bool(self.test_rows), "test_rows", f"needs {key} = '', and must be 0 with a {key}")
        return self


class ModelConfig(_Section):
    """The classifier."""

    kind: Literal["mlp", "cnn", "resnet18", "import"]
    """`import`: a network of your own, see `own_model.py`."""
    hidden: list[Width] = []
    """Widths of the hidden layers; mlp only."""
    channels: list[Width] = []
    """Channels of the convolutional layers; cnn only."""
    dense: Annotated[int, Field(ge=0)] = 0
    """Width of the layer before the logits; cnn only."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping an input of a dense layer while training; built-in kinds only."""
    path: str = ""
    """`module:name` of a class or function that makes a torch.nn.Module; import only."""
    arguments: dict[str, Any] = {}
    """What it is called with; import only."""
    standardize: bool = True
    """Whether the network gets rows less their mean over their deviation, or as they are; import only."""

    @property
    def hidden_layers(self) -> tuple[str, ...]:
        """Names of the hidden layers from input to output; none is known for kind = 'import' before it is made."""
        match self.kind:
            case "mlp":
                return tuple(f"dense{i}" for i in range(1, len(self.hidden) + 1))
            case "cnn":
                return (*(f"conv{i}" for i in range(1, len(self.channels) + 1)), "dense")
            case "resnet18":
                return ("layer1", "layer2", "layer3", "layer4")
        return ()

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        for key, kind in MODEL_KEYS.items():
            unread = self.kind != kind and key in self.model_fields_set and bool(getattr(self, key))
            _require(not unread, key, f"belongs to kind = {kind!r}, this is {self.kind!r}; leave it out")
        if self.kind == "mlp":
            _require(bool(self.hidden), "hidden", "must name at least one width, for instance [128, 64]")
        if self.kind == "cnn":
            _require(bool(self.channels), "channels", "must name at least one width, for instance [32, 64]")
            _require(self.dense > 0, "dense", "must be at least 1, for instance 128")
        if self.kind == "import":
            well_formed = re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", self.path)
            _require(bool(well_formed), "path", "must read module:name, for instance my_package.nets:make_net")
            _require(not self.dropout, "dropout", "belongs to the built-in kinds; the network brings its own")
        _require(self.standardize or self.kind == "import", "standardize", "can only be false for kind = 'import'")
        return self


class LossConfig(_Section):
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


class TrainingConfig(_Section):
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
    """Threads of torch while training, 0 = as many as torch finds; part of what makes weights repeat bit for bit."""
    checkpoint_every_epochs: Width = 1
    probe_rows: Annotated[int, Field(ge=0)] = 512
    """Test rows, equally many of each class, on which every hidden layer's entanglement is recorded each epoch; 0 =
    not recorded. The weights are the same with and without."""

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        enough = self.batch_size >= 2 * self.devices
        _require(enough, "devices", f"must leave each at least 2 rows of batch_size = {self.batch_size}")
        cuda_needed = self.precision == "16-mixed"
        _require(not cuda_needed or self.accelerator == "cuda", "precision", "16-mixed needs accelerator = 'cuda'")
        return self


class AugmentationConfig(_Section):
    """Random changes of training batches, drawn anew for each row each time; nothing else is changed, ever."""

    crop_padding: Annotated[int, Field(ge=0)] = 0
    """Pixels of zeros on each side, of which a crop of the image's size is taken."""
    horizontal_flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of a mirror image."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turned by an angle between minus and plus this, bilinearly; what comes in from outside is zero."""


class DetectorConfig(_Section):
    """What the bank holds and how a row is scored."""

    layers: list[str]
    """Hidden layers whose representations are compared."""
    metric: Metric = "cosine"
    max_dim: Width = 256
    """Wider layers are randomly projected to this many numbers."""
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
    precision: Precision | Literal["auto"] = "float32"
    """What the bank is stored in; `auto`: the fewest bits that keep within max_p_value_change."""
    max_p_value_change: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Error budget of precision and condense: largest change of a calibration row's p-value; 1 = no limit."""

    @model_validator(mode="after")
    def _check(self) -> DetectorConfig:
        _require(bool(self.layers), "layers", "must name at least one hidden layer")
        _require(len(set(self.joint_parts)) == len(self.joint_parts), "joint_parts", "must not repeat a part")
        needs_parts = self.nonconformity == "joint" and not self.joint_parts
        _require(not needs_parts, "joint_parts", "must name at least one part for nonconformity = 'joint'")
        limited = self.precision != "auto" or self.max_p_value_change < 1
        _require(limited, "max_p_value_change", "must be set, below 1, for precision = 'auto', which it decides")
        return self


class Recipe(_Section):
    """Everything that decides a run; equal recipes on equal data give equal weights on CPU."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$", max_length=63)]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = "1"
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
            _require(len(set(layers)) == len(layers), key, "must not repeat a layer")
            unknown = [x for x in layers if x not in existing]
            _require(not unknown, key, f"{unknown} not among the hidden layers of this {self.model.kind}: {existing}")
        if isinstance(self.loss.weight, dict):
            same = self.loss.weight.keys() == set(self.loss.layers)
            _require(same, "loss.weight", f"needs exactly one number for each of loss.layers = {self.loss.layers}")
        return self


def load_recipe(path_or_builtin_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides, check everything.

    Args:
        path_or_builtin_name: a TOML file, or a bare name such as `digits` for a recipe that ships with softkin.
        overrides: `section.key=value`; the value is read as TOML, and as a plain string where it is not TOML.

    Raises:
        RecipeError: no such recipe, not TOML, an unknown or missing key, a value of the wrong type or out of range, or
            two keys that contradict each other. One line per fault: file, section.key, value, what is allowed.
    """
    path = _find(path_or_builtin_name)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path}: cannot be read ({e}); give a TOML file or one of {_builtin_names()}") from None
    except tomllib.TOMLDecodeError as e:
        raise RecipeError(f"{path}: not valid TOML: {e}") from None
    for override in overrides:
        _apply(raw, override)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as e:
        raise RecipeError("\n".join(_describe(fault, raw, path, overrides) for fault in e.errors())) from None


def _require(ok: bool, key: str, allowed: str) -> None:
    # pydantic wraps ValueErrors of a whole section without saying which key: the key travels in front of the bar.
    if not ok:
        raise ValueError(f"{key}|{allowed}")


def _builtin_names() -> list[str]:
    return sorted(p.stem for p in BUILTIN_RECIPES.glob("*.toml"))


def _find(name: str | Path) -> Path:
    if isinstance(name, str) and name in _builtin_names():
        return BUILTIN_RECIPES / f"{name}.toml"
    path = Path(name)
    if not path.is_file():
        raise RecipeError(f"{name}: no such recipe; give a TOML file or one of {_builtin_names()}")
    return path


def _apply(raw: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = [k.strip() for k in dotted.split(".")]
    if not equals or not all(keys):
        raise RecipeError(f"--set {override!r}: must read section.key=value, for instance training.epochs=5")
    table = raw
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override!r}: {key} is the value {table!r}, not a section")
    table[keys[-1]] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _describe(fault: Any, raw: Mapping[str, Any], path: Path, overrides: Sequence[str]) -> str:
    loc, message = list(fault["loc"]), fault["msg"]
    if fault["type"] == "value_error":
        key, bar, allowed = str(fault["ctx"]["error"]).rpartition("|")
        loc, message = loc + (key.split(".") if bar else []), allowed
    dotted = "".join(f"[{x}]" if isinstance(x, int) else f".{x}" for x in loc).lstrip(".")
    where = f"{path}: {dotted}"
    if any(o.partition("=")[0].strip() == dotted for o in overrides):
        where = f"{path} with --set {dotted}: {dotted}"
    if fault["type"] == "extra_forbidden":
        return f"{where} is unknown; allowed keys: {_allowed_keys(loc[:-1])}"
    if fault["type"] == "missing":
        return f"{where} is missing; it has no default"
    return f"{where} is {_value_at(raw, loc)!r}: {message}"


def _value_at(raw: Any, loc: Sequence[Any]) -> Any:
    for key in loc:
        try:
            raw = raw[key]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _allowed_keys(section: Sequence[Any]) -> str:
    model: Any = Recipe
    for key in section:
        model = model.model_fields[key].annotation
    return ", ".join(model.model_fields)
