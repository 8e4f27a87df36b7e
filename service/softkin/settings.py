"""Every option of the server, declared once: flag, environment variable, default, unit and range.

Precedence: flag > environment (`SOFTKIN_` + the name in capitals) > default.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from softkin.certificate import DEFAULT_CONFIDENCE
from softkin.device import parse_device
from softkin.drift import DEFAULT_LEVEL
from softkin.errors import InvalidInputError
from softkin.verdicts import Guarantee

ENV_PREFIX = "SOFTKIN_"
POSITIONAL = "bundles"


class ServerSettings(BaseSettings):
    """What the operator chose; nothing here is computed."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    bundles: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="Bundle directories to load; the environment variable separates them with ':'."
    )
    host: str = Field(
        default="0.0.0.0",
        description="Address to listen on, for gRPC and metrics: every IPv4 interface unless changed; '::' for IPv6 "
        "too, '127.0.0.1' for this machine only.",
    )
    port: int = Field(default=50051, ge=0, le=65535, description="gRPC port; 0 picks a free one.")
    metrics_port: int = Field(default=9090, ge=0, le=65535, description="Prometheus port; 0 picks a free one.")
    device: str = Field(
        default="auto",
        description="Where to compute: 'cuda' or 'cuda:N' refuses to run anywhere else, 'auto' may fall back to 'cpu'; "
        "several with commas between hold a share of each bank.",
    )
    alpha: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Rate used when a request names none; each bundle's own default when not set.",
    )
    guarantee: Guarantee = Field(
        default="marginal", description="What alpha promises when a request does not say; see docs/guarantees.md."
    )
    confidence: float = Field(
        default=DEFAULT_CONFIDENCE,
        gt=0,
        lt=1,
        description="Confidence of certified verdicts and of the stated bound, when a request names none.",
    )
    drift_level: float = Field(
        default=DEFAULT_LEVEL, gt=0, lt=1, description="Chance of a drift alarm, ever, while nothing drifts."
    )
    drift_state: Path | None = Field(
        default=None,
        description="Directory that keeps the drift watches over a restart, one for each server; they begin anew when "
        "not set.",
    )
    drift_save_seconds: float = Field(
        default=10, gt=0, le=3600, description="Seconds between two writes of the drift state."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Compute threads on the CPU; the cores this process may use when not set.",
    )
    workers: int = Field(default=2, ge=1, le=256, description="Requests computed at the same time; the others wait.")
    max_rows: int = Field(default=4096, ge=1, le=1 << 20, description="Rows in one request.")
    max_message_bytes: int = Field(
        default=64 << 20, ge=1 << 10, le=(1 << 31) - 1, description="Bytes in one request message."
    )
    max_pending_rows: int = Field(
        default=16384,
        ge=1,
        le=1 << 24,
        description="Rows waiting or being scored, over which requests are refused at once.",
    )
    max_pending_requests: int = Field(
        default=128,
        ge=1,
        le=4096,
        description="Requests waiting or being scored (a thread each), over which requests are refused at once.",
    )
    max_neighbors: int = Field(default=100, ge=0, le=10_000, description="Nearest training rows per row and layer.")
    drain_delay_seconds: float = Field(
        default=0,
        ge=0,
        le=3600,
        description="Seconds to go on accepting requests after SIGTERM, while load balancers notice NOT_SERVING.",
    )
    drain_grace_seconds: float = Field(
        default=30, ge=0, le=3600, description="Seconds that requests in flight get to finish at shutdown."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line."
    )

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str) -> str:
        try:
            parse_device(value)
        except InvalidInputError as e:
            raise ValueError(e.message.partition("; ")[2]) from None
        return value

    @field_validator("bundles", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return tuple(value.split(os.pathsep)) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_request_can_be_admitted(self) -> ServerSettings:
        if self.max_pending_rows < self.max_rows:
            raise ValueError(
                f"max_pending_rows {self.max_pending_rows} is below max_rows {self.max_rows}, so the largest "
                "request could never be admitted; raise max_pending_rows or lower max_rows"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment; no files."""
        return init_settings, _Environment(settings_cls)


class _Environment(EnvSettingsSource):
    """The environment, less the `SOFTKIN_PORT=tcp://...` that Kubernetes sets beside a Service named softkin."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value, key, is_complex = super().get_field_value(field, field_name)
        if isinstance(value, str) and value.startswith("tcp://"):
            value = None
        return value, key, is_complex


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the bundles and one flag per option; values stay text until `from_flags` checks them."""
    parser.add_argument(
        POSITIONAL,
        nargs="*",
        metavar="BUNDLE",
        default=argparse.SUPPRESS,
        help=f"bundle directory; required here or in {ENV_PREFIX}BUNDLES",
    )
    for name, field in ServerSettings.model_fields.items():
        if name == POSITIONAL:
            continue
        default = "not set" if field.default is None else field.default
        notes = "; ".join(filter(None, [_allowed(field), f"default: {default}", f"env: {_variable(name)}"]))
        text = f"{field.description} [{notes}]".replace("%", "%%")
        parser.add_argument(_flag(name), default=argparse.SUPPRESS, metavar=name.split("_")[-1].upper(), help=text)


def from_flags(flags: argparse.Namespace) -> ServerSettings:
    """The settings that flags, environment and defaults make together.

    Raises:
        InvalidInputError: names the flag or variable, its value and what is allowed.
    """
    given = {name: getattr(flags, name) for name in ServerSettings.model_fields if name in flags}
    try:
        settings = ServerSettings(**given)
    except ValidationError as e:
        error = e.errors()[0]
        if not error["loc"]:
            raise InvalidInputError("settings", str(error["ctx"]["error"])) from None
        name = str(error["loc"][0])
        source = _flag(name) if name in given else _variable(name)
        allowed = _allowed(ServerSettings.model_fields[name]) or str(error["msg"]).removeprefix("Value error, ")
        raise InvalidInputError(source, f"got {error['input']!r}; {allowed}") from None
    if not settings.bundles:
        raise InvalidInputError("BUNDLE", f"none given; name at least one bundle directory, or set {ENV_PREFIX}BUNDLES")
    return settings


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return ENV_PREFIX + name.upper()


def _allowed(field: FieldInfo) -> str:
    choices = get_args(field.annotation)
    if choices and all(isinstance(c, str) for c in choices):
        return "allowed: " + ", ".join(choices)
    bounds = {key: getattr(m, key) for m in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(m, key)}
    if not bounds:
        return ""
    low = str(bounds["ge"]) if "ge" in bounds else f"more than {bounds['gt']}"
    high = str(bounds["le"]) if "le" in bounds else f"less than {bounds['lt']}"
    return f"allowed: {low} to {high}"
