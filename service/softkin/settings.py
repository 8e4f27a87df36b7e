"""Every option of the server, declared once: flag, environment variable, key of a file, default, unit and range.

Precedence: flag > environment (`SOFTKIN_` + the name in capitals) > TOML file (the name) > default.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from softkin.certificate import DEFAULT_CONFIDENCE
from softkin.device import parse_device
from softkin.drift import DEFAULT_LEVEL
from softkin.errors import InvalidInputError
from softkin.loopback import is_loopback
from softkin.sources import ENV_PREFIX, Environment, config_path, read_config
from softkin.verdicts import Guarantee

_TILDE = "'~' is replaced by a shell alone, and only where a word begins with it; write the whole path"


class ServerSettings(BaseSettings):
    """What the operator chose; nothing here is computed."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    bundles: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="Bundle directories to load; the environment variable separates them with ':'."
    )
    host: str = Field(
        default="0.0.0.0",
        description="Address to listen on, for gRPC and metrics: every interface unless changed, by IPv6 too for gRPC, "
        "and with '::' for metrics; '127.0.0.1' for this machine only.",
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
    workers: int = Field(default=2, ge=1, le=256, description="Batches computed at the same time; the others wait.")
    max_batch_rows: int = Field(
        default=256, ge=1, le=1 << 16, description="Rows of one batch: requests are merged up to it, and cut above it."
    )
    batch_delay_seconds: float = Field(
        default=0, ge=0, le=1, description="Seconds that a batch which is not full may wait for more requests."
    )
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
    max_pending_bytes: int = Field(
        default=512 << 20,
        ge=1 << 10,
        le=1 << 40,
        description="Bytes of inputs waiting or being scored, over which requests are refused at once.",
    )
    max_pending_requests: int = Field(
        default=128,
        ge=1,
        le=4096,
        description="Requests waiting or being scored (a thread each), over which requests are refused at once. "
        "Of unary calls 8 more may be under way, whose message or answer is.",
    )
    max_streams: int = Field(
        default=32,
        ge=0,
        le=1024,
        description="Streams open at the same time (two threads each); 'softkin score' opens one, and sends unary "
        "calls where it gets none.",
    )
    stream_window: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="Requests of one stream that may be unanswered; then the server stops reading it.",
    )
    max_neighbors: int = Field(default=100, ge=0, le=10_000, description="Nearest training rows per row and layer.")
    row_names: bool = Field(
        default=False,
        description="Whether callers learn what nearest training rows are called, where the bundle has their names.",
    )
    drain_delay_seconds: float = Field(
        default=0,
        ge=0,
        le=3600,
        description="Seconds to go on accepting requests after SIGTERM, while load balancers notice NOT_SERVING.",
    )
    drain_grace_seconds: float = Field(
        default=30, ge=0, le=3600, description="Seconds that requests in flight get to finish at shutdown."
    )
    admin_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of the admin service, which loads, unloads and labels detectors; 0 picks a free one, and "
        "there is no such service when not set.",
    )
    admin_host: str = Field(
        default="127.0.0.1",
        description="Address of the admin service; one that others can reach needs a token_file or a tls_client_ca.",
    )
    bundle_root: Path | None = Field(
        default=None,
        description="Directory that bundles are loaded from by the admin service; it loads none when not set.",
    )
    reload_policy: Literal["availability", "resource"] = Field(
        default="availability",
        description="How a version is replaced: 'availability' loads the new one first, and has both in memory for a "
        "while; 'resource' drops the old one first, and requests for it are told to retry meanwhile.",
    )
    shadow_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of the requests that the version labelled 'shadow' scores too."
    )
    shadow_min_rows: int = Field(
        default=1000,
        ge=1,
        le=1 << 40,
        description="Rows that a shadow must have been compared on before it can become 'stable'.",
    )
    shadow_max_disagreement: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of rows with another verdict up to which a shadow can become 'stable'; what must not exceed "
        "it is the share's exact upper limit at confidence 0.95.",
    )
    tls_cert: Path | None = Field(
        default=None,
        description="PEM file with the certificate of the gRPC port, and those that link it to its authority. Renewed "
        "files are used for new connections, without a restart. Plaintext when not set.",
    )
    tls_key: Path | None = Field(
        default=None, description="PEM file with the private key of the certificate, without a password."
    )
    tls_client_ca: Path | None = Field(
        default=None,
        description="PEM file with the authorities whose client certificates are accepted. Clients need none when not "
        "set.",
    )
    token_file: Path | None = Field(
        default=None,
        description="File of bearer tokens, one a line, each of which lets callers in; read again when it changes. "
        "Health and reflection need none. Everybody may call when not set.",
    )
    reflection: bool = Field(default=True, description="Whether callers can list services and messages.")
    inference_protocol: bool = Field(
        default=True,
        description="Whether the Open Inference Protocol is spoken too, for tritonclient and KServe's clients.",
    )
    max_connection_age_seconds: float | None = Field(
        default=None,
        ge=1,
        le=7 * 86400,
        description="Seconds, give or take a tenth, after which a connection is asked to reconnect, so that its calls "
        "reach new instances; never when not set.",
    )
    max_connection_age_grace_seconds: float = Field(
        default=60,
        ge=0,
        le=86400,
        description="Seconds that calls of a connection past its age get to finish; streams that last longer are cut.",
    )
    keepalive_seconds: float = Field(
        default=60,
        ge=1,
        le=7200,
        description="Seconds without a sign of life after which a connection is tested; a dead one is closed 20 "
        "seconds later.",
    )
    min_ping_interval_seconds: float = Field(
        default=10,
        ge=0,
        le=7200,
        description="Seconds between a client's own tests of its connection; a client that tests more often is "
        "disconnected (too_many_pings). softkin's own test every 60 while a call waits.",
    )
    config: Path | None = Field(
        default=None,
        description="TOML file of options, by their names with underscores; paths start where the server does.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line; 'debug' has one for every call."
    )
    log_format: Literal["text", "json"] = Field(default="text", description="Log lines as key=value pairs, or as JSON.")
    tracing: bool = Field(
        default=False,
        description="Whether every call leaves an OpenTelemetry span, sent where the OTEL_ variables say; needs the "
        "extra 'tracing'.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_slips(cls, value: object, info: ValidationInfo) -> object:
        # An empty path would be the current directory, and true the number 1.
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, str) and not value.strip():
            raise ValueError("it is empty; leave the option out, or give it a value")
        if isinstance(value, str) and value.startswith("~") and "Path" in str(field.annotation):
            raise ValueError(_TILDE)  # a drift state would be kept in a folder of that name, wherever the server starts
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("true and false are no values of it")
        return value

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str) -> str:
        try:
            parse_device(value)
        except InvalidInputError as e:
            raise ValueError(e.message.partition("; ")[2]) from None
        return value

    @field_validator("host", "admin_host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        before, colon, _ = value.rpartition(":")
        if value.startswith("[") or (colon and ":" not in before):
            raise ValueError("it is a name or address alone: no brackets, and the port in an option of its own")
        return value

    @field_validator("bundle_root")
    @classmethod
    def _check_bundle_root(cls, value: Path | None) -> Path | None:
        if value is not None and not os.path.isdir(value):  # the method raises where a name is too long, or hidden
            raise ValueError("it must be a directory")
        return value

    @field_validator("bundles", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        paths = tuple(value.split(os.pathsep)) if isinstance(value, str) else value
        if isinstance(paths, tuple | list) and "" in paths:
            raise ValueError("one of the paths is empty")
        if isinstance(paths, tuple | list) and any(str(path).startswith("~") for path in paths):
            raise ValueError(_TILDE)
        return paths

    @model_validator(mode="after")
    def _one_request_can_be_admitted(self) -> ServerSettings:
        if self.max_pending_rows < self.max_rows:
            raise ValueError(
                f"max_pending_rows {self.max_pending_rows} is below max_rows {self.max_rows}, so the largest "
                "request could never be admitted; raise max_pending_rows or lower max_rows"
            )
        if self.max_pending_bytes < self.max_message_bytes:
            raise ValueError(
                f"max_pending_bytes {self.max_pending_bytes} is below max_message_bytes {self.max_message_bytes}, so "
                "the largest request could never be admitted; raise max_pending_bytes or lower max_message_bytes"
            )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> ServerSettings:
        if self.port and self.port == self.metrics_port:
            raise ValueError(f"port and metrics_port are both {self.port}; give each its own")
        everywhere = {"0.0.0.0", "::"}
        apart = self.host != self.admin_host and not everywhere & {self.host, self.admin_host}
        for name in ("port", "metrics_port"):
            if self.admin_port and self.admin_port == getattr(self, name) and not apart:
                raise ValueError(f"{name} and admin_port are both {self.admin_port}; give each its own")
        return self

    @model_validator(mode="after")
    def _tls_is_complete(self) -> ServerSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_key", "tls_cert") if self.tls_cert is None else ("tls_cert", "tls_key")
            raise ValueError(f"{given} is set without {missing}; TLS needs both, plaintext neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca is set without tls_cert and tls_key; client certificates need TLS")
        return self

    @model_validator(mode="after")
    def _admin_is_guarded(self) -> ServerSettings:
        guarded = self.token_file is not None or self.tls_client_ca is not None
        if self.admin_port is not None and not guarded and not is_loopback(self.admin_host):
            raise ValueError(
                f"admin_host {self.admin_host} can be reached from other machines, and who calls the admin service "
                "decides what is served; set token_file or tls_client_ca, or leave admin_host at 127.0.0.1"
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
        """Flags, then the environment, then the file that one of them names."""
        environment = Environment(settings_cls)
        path = config_path(init_settings(), environment())
        values = {} if path is None else read_config(path, settings_cls)
        return init_settings, environment, InitSettingsSource(settings_cls, values)
