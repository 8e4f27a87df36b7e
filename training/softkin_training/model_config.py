"""The section [model] of a recipe."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from softkin_training.config_section import Section, Width, require

MODEL_KEYS = {"hidden": "mlp", "channels": "cnn", "dense": "cnn", "path": "import", "arguments": "import"}
"""Keys of [model] that one kind alone reads."""


class ModelConfig(Section):
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
            require(not unread, key, f"belongs to kind = {kind!r}, this is {self.kind!r}; leave it out")
        if self.kind == "mlp":
            require(bool(self.hidden), "hidden", "must name at least one width, for instance [128, 64]")
        if self.kind == "cnn":
            require(bool(self.channels), "channels", "must name at least one width, for instance [32, 64]")
            require(self.dense > 0, "dense", "must be at least 1, for instance 128")
        if self.kind == "import":
            well_formed = re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", self.path)
            require(bool(well_formed), "path", "must read module:name, for instance my_package.nets:make_net")
            require(not self.dropout, "dropout", "belongs to the built-in kinds; the network brings its own")
        require(self.standardize or self.kind == "import", "standardize", "can only be false for kind = 'import'")
        return self
