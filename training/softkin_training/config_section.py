"""What all sections of a recipe share: strict values, frozen once read, and errors that name the key."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Width = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Unknown keys are errors, a string never becomes a number, nothing can be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


def require(ok: bool, key: str, allowed: str) -> None:
    """Refuse a value of a section that is checked as a whole.

    pydantic wraps ValueErrors of a section without saying which key, so the key travels in front of a bar.

    Raises:
        ValueError: not `ok`; pydantic and `load_recipe` make the message of it.
    """
    if not ok:
        raise ValueError(f"{key}|{allowed}")
