"""Errors as the user of a command line reads them: with the option that was typed, not the argument it became."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence

from softkin.errors import InvalidInputError, SoftkinError


def option(name: str) -> str:
    """An option from its name with underscores."""
    return "--" + name.replace("_", "-")


CONNECTION_OPTIONS = {
    "timeout_seconds": "--timeout",
    "token": "--token-file",
    **{name: option(name) for name in ("target", "tls_ca", "tls_cert", "tls_key", "tls_server_name", "token_file")},
}
"""Argument of every client -> option."""
DETECTOR_OPTIONS = CONNECTION_OPTIONS | {"detector": "--detector", "version": "--detector-version", "label": "--label"}
"""Argument of what asks for one detector -> option."""
SCORE_OPTIONS = DETECTOR_OPTIONS | {
    "num_neighbors": "--neighbors",
    **{name: option(name) for name in ("alpha", "guarantee", "confidence", "smoothing_seed")},
}
"""Argument of what scores -> option."""
ADMIN_OPTIONS = CONNECTION_OPTIONS | {
    "path": "PATH",
    "detector": "NAME",
    "version": "VERSION",
    "label": "LABEL",
    "labels": "--label",
}
"""Argument of what changes a server -> option, or what stands for it in the usage."""
SERVICE_COMMANDS = ("serve", "score", "status", "drift", "admin", "inspect", "export-onnx", "healthcheck")
"""Commands of `softkin`."""
TRAINING_COMMANDS = (
    "run",
    "train",
    "export",
    "build",
    "evaluate",
    "fit",
    "recalibrate",
    "rows",
    "explain",
    "ablate",
    "entanglement",
)
"""Commands of `softkin-train`. Both stand here so that each program knows the other's without importing it."""


ELSEWHERE = {("softkin inspect", "--target"): "softkin status --target HOST:PORT shows what a server serves; "}
"""Options that a command is often given and another one has."""


def as_typed(error: SoftkinError, options: Mapping[str, str]) -> str:
    """The text of an error, with options in place of the names that Python has for them.

    Args:
        error: of the library.
        options: argument -> what it is called on the command line, such as `timeout_seconds` -> `--timeout`.
    """
    field, text = "", str(error)
    if isinstance(error, InvalidInputError):
        field, text = f"{options.get(error.field, error.field)}: ", error.message
    # A setting, as recipes spell it: nonconformity = 'density'.
    settings = rf"(?<![^\s(])({'|'.join(options)}) = '([^']*)'"
    text = re.sub(settings, lambda found: f"{options[found[1]]} {found[2]}", text) if options else text
    # Only names with underscores, which are no English words, and only where they stand alone: with a colon, dot, slash
    # or quote beside them, they belong to a file or a value of the user's.
    names = "|".join(name for name in options if "_" in name)
    if names:
        text = re.sub(rf"(?<![^\s(])(?:{names})(?![^\s),;])", lambda found: options[found[0]], text)
    return field + text


def unrecognized(parser: argparse.ArgumentParser, typed: Sequence[str]) -> str:
    """What to say of arguments that a parser does not know, with the option that the first one is likely to mean."""
    known = [o for action in parser._actions for o in action.option_strings if o.startswith("--")]
    first = next((a.partition("=")[0] for a in typed if a.startswith("--")), "")
    near = difflib.get_close_matches(first, known, n=1, cutoff=0.75)
    meant = ELSEWHERE.get((parser.prog, first), f"did you mean {near[0]}? " if near else "")
    several = next((a.metavar for a in parser._actions if a.nargs == "*" and not a.option_strings), None)
    if several and not meant and not typed[0].startswith("-"):  # argparse takes them from one place of the line alone
        meant = f"give every {several} in one row, before or after the options; "
    return f"unrecognized arguments: {' '.join(typed)}; {meant}--help lists what there is"


def refuse_command_of(
    program: str, commands: Sequence[str], parser: argparse.ArgumentParser, typed: Sequence[str]
) -> None:
    """Exit as for wrong usage where the command is the other program's: a list of this one's would not help.

    Args:
        program: the other one.
        commands: it has.
        parser: of this program.
        typed: arguments without this program's name.
    """
    if typed and typed[0] in commands:
        parser.error(f"argument COMMAND: got {typed[0]!r}, a command of {program}; run {program} {typed[0]}")
