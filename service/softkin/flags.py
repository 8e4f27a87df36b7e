"""The command line of `softkin serve`: a flag for every option, and what the options amount to."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from softkin import __version__
from softkin.errors import InvalidInputError
from softkin.settings import ServerSettings
from softkin.sources import CONFIG, POSITIONAL, Origin, flag, origin, unknown_variables, variable

_KINDS = {
    "string_type": "it must be text, in quotes",
    "path_type": "it must be a path, in quotes",
    "tuple_type": 'it must be a list of paths: ["a", "b"]',
}
"""What a file may have instead of a value of the wrong type."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the bundles and one flag per option; values stay text until `from_flags` checks them."""
    # Forty lines of flags would push what was wrong out of sight; --help has them below, each with its meaning.
    parser.usage = f"{parser.prog} [-h] [--OPTION VALUE ...] [--print-config] [BUNDLE ...]"
    parser.epilog = (
        "An option is taken from its flag, else from its environment variable, else from the file that --config names, "
        "where its key is its name with underscores."
    )
    parser.add_argument(
        POSITIONAL,
        nargs="*",
        metavar="BUNDLE",
        default=argparse.SUPPRESS,
        help=f"bundle directory; required here, in {variable(POSITIONAL)} or in the file",
    )
    for name, field in ServerSettings.model_fields.items():
        if name == POSITIONAL:
            continue
        default = "not set" if field.default is None else _toml(field.default).strip('"')
        notes = "; ".join(filter(None, [_allowed(field), f"default: {default}", f"env: {variable(name)}"]))
        text = f"{field.description} [{notes}]".replace("%", "%%")
        parser.add_argument(flag(name), default=argparse.SUPPRESS, metavar=name.split("_")[-1].upper(), help=text)
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print every option with its value and where that comes from, as a file for --config, and exit",
    )


def from_flags(flags: argparse.Namespace) -> ServerSettings:
    """The settings that flags, environment, file and defaults make together.

    Raises:
        InvalidInputError: names the flag, variable or key, its value and what is allowed.
    """
    given = _given(flags)
    try:
        settings = ServerSettings(**given)
    except ValidationError as e:
        error = e.errors()[0]
        if not error["loc"]:
            raise InvalidInputError("settings", str(error["ctx"]["error"])) from None
        name = str(error["loc"][0])
        allowed = _allowed(ServerSettings.model_fields[name]) or _KINDS.get(error["type"], str(error["msg"]))
        allowed = allowed.removeprefix("Value error, ")
        where = origin(name, given, ServerSettings).name
        raise InvalidInputError(where, f"got {error['input']!r}; {allowed}") from None
    if not settings.bundles and not flags.print_config:
        raise InvalidInputError(
            flag(POSITIONAL), f"none given; name at least one bundle directory, or set {variable(POSITIONAL)}"
        )
    return settings


def as_set(name: str, flags: argparse.Namespace, settings: ServerSettings) -> str:
    """The flag, variable or key that an option was set by; its name where it was not, or is no option."""
    return origin(name, _given(flags), ServerSettings).name if name in settings.model_fields_set else name


def print_config(flags: argparse.Namespace) -> str:
    """Every option as TOML that `--config` takes back, with its origin beside it; what is not set is a comment.

    No file but the configuration is read: certificates, keys and tokens appear as paths.

    Raises:
        InvalidInputError: as from `from_flags`.
    """
    settings, given = from_flags(flags), _given(flags)
    lines = [f"# softkin {__version__}; flag > environment > file > default"]
    if settings.config is not None:
        lines.append(f"# file: {_toml(settings.config)}")
    for name, value in settings:
        if name != CONFIG:
            found = origin(name, given, ServerSettings) if name in settings.model_fields_set else None
            lines.append(_line(name, value, found))
    return "\n".join(lines)


def warnings() -> list[str]:
    """What in the environment looks like an option and does nothing: a misspelt one might have been meant to guard."""
    found = unknown_variables(os.environ, ServerSettings)
    return [f"{name} is set and is no option; did you mean {nearest}?" for name, nearest in sorted(found.items())]


def _given(flags: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(flags, name) for name in ServerSettings.model_fields if name in flags}


def _line(name: str, value: object, found: Origin | None) -> str:
    source = "default"
    if found is not None:
        source = found.kind if found.kind == "file" else f"{found.kind} {found.name}"
    return f"# {name} is not set ({source})" if value is None else f"{name} = {_toml(value)}  # {source}"


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case str() | Path():
            # A TOML string is a JSON string, but for DEL.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case _:
            raise TypeError(f"no TOML for {value!r}")


def _allowed(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "allowed: true, false"
    choices = get_args(field.annotation)
    if choices and all(isinstance(c, str) for c in choices):
        return "allowed: " + ", ".join(choices)
    bounds = {key: getattr(m, key) for m in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(m, key)}
    if not bounds:
        return ""
    low = str(bounds["ge"]) if "ge" in bounds else f"more than {bounds['gt']}"
    high = str(bounds["le"]) if "le" in bounds else f"less than {bounds['lt']}"
    return f"allowed: {low} to {high}"
