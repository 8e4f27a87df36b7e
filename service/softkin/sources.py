"""Where options come from: flags, the environment, a TOML file."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource

from softkin.errors import InvalidInputError
from softkin.option_names import option

ENV_PREFIX = "SOFTKIN_"
POSITIONAL = "bundles"
"""The one option that is given without a flag."""
CONFIG = "config"
"""The one option that a file cannot hold: which file it is."""
GUARDS = ("token_file", "tls_cert", "tls_key", "tls_client_ca")
"""Options without which anybody may call: a variable that a template left empty must not switch them off."""
_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP|SCTP)")
"""What Kubernetes sets beside a Service whose name begins with softkin."""


class Environment(EnvSettingsSource):
    """The environment, less the `SOFTKIN_PORT=tcp://...` that Kubernetes sets beside a Service named softkin."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """A variable's text; None counts as not set, and so does an empty text, which is a mistake for `GUARDS`."""
        value, key, is_complex = super().get_field_value(field, field_name)
        if isinstance(value, str) and (_is_address(value) or (not value and field_name not in GUARDS)):
            value = None
        return value, key, is_complex


class Origin(NamedTuple):
    """Where a value comes from."""

    kind: Literal["flag", "environment", "file"]
    name: str
    """`--port`, `SOFTKIN_PORT`, or `softkin.toml: port`."""


def origin(name: str, flags: Mapping[str, Any], settings: type[BaseSettings]) -> Origin:
    """Where an option that is not left at its default comes from, whether its value is allowed or not.

    The configuration file is not read again: some, such as pipes, can be read once.

    Args:
        name: of the option.
        flags: values by name, as they are given to `settings`.
        settings: what the options are.
    """
    if name in flags:
        return Origin("flag", flag(name))
    environment = Environment(settings)()
    if name in environment:
        return Origin("environment", variable(name))
    return Origin("file", f"{config_path(flags, environment)}: {name}")


def read_config(path: Path, settings: type[BaseSettings]) -> dict[str, Any]:
    """The options in a TOML file; their values are not checked.

    Raises:
        InvalidInputError: the file cannot be read, is no TOML, or has a key that is no option.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as e:
        raise InvalidInputError(CONFIG, f"{path}: cannot be read ({e.strerror}); check path and rights") from None
    except ValueError as e:  # not UTF-8, or not TOML
        raise InvalidInputError(CONFIG, f"{path}: not a TOML file ({e})") from None
    known = sorted(settings.model_fields.keys() - {CONFIG})
    for key in values:
        if key not in known:
            if isinstance(values[key], dict) and not values[key].keys().isdisjoint(known):
                raise InvalidInputError(CONFIG, f"{path}: options stand in no table; take out the line [{key}]")
            nearest = _nearest(key, known)
            raise InvalidInputError(
                CONFIG, f"{path}: unknown key {key!r}; did you mean {nearest!r}? softkin serve --help lists all"
            )
    return values


def unknown_variables(environment: Mapping[str, str], settings: type[BaseSettings]) -> dict[str, str]:
    """Variables that look like options and are none, each with the nearest that is one.

    They are no errors: whoever sets one may mean another program, or be Kubernetes.
    """
    known = [variable(name) for name in settings.model_fields]
    return {
        name: _nearest(name, known)
        for name, value in environment.items()
        if name.startswith(ENV_PREFIX) and name not in known and not _KUBERNETES.search(name) and not _is_address(value)
    }


def config_path(flags: Mapping[str, Any], environment: Mapping[str, Any]) -> Path | None:
    """The file that a flag or else the environment names."""
    path = flags.get(CONFIG) or environment.get(CONFIG)
    return None if path is None else Path(path)


def flag(name: str) -> str:
    """The flag of an option."""
    return "BUNDLE" if name == POSITIONAL else option(name)


def variable(name: str) -> str:
    """The environment variable of an option."""
    return ENV_PREFIX + name.upper()


def _nearest(name: str, known: Sequence[str]) -> str:
    [nearest] = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return nearest


def _is_address(value: str) -> bool:
    return value.startswith(("tcp://", "udp://", "sctp://"))
