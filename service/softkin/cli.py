"""The `softkin` command: serve, score, status, drift, admin, inspect, export-onnx, healthcheck.

Exit status: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from softkin import __version__
from softkin.console import OutputError, flushed, lost_directory
from softkin.errors import InvalidInputError, NotFoundError, OverloadedError, SoftkinError, UnsupportedError
from softkin.option_names import (
    ADMIN_OPTIONS,
    CONNECTION_OPTIONS,
    DETECTOR_OPTIONS,
    SCORE_OPTIONS,
    TRAINING_COMMANDS,
    as_typed,
    refuse_command_of,
    unrecognized,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from softkin.client import Client
    from softkin.scores import Scores

FAILED, USAGE = 1, 2


class Command(NamedTuple):
    """One sub-command. What it needs is imported when it is chosen, not before."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    options: Mapping[str, str] = {}
    """Arguments that errors may name -> what the user knows them as."""


class UsageError(Exception):
    """The command line or the environment is wrong; the message says how."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Returns:
        The exit status. Wrong usage exits at once with status 2, as argparse does.
    """
    try:
        with flushed():
            return _run(sys.argv[1:] if argv is None else list(argv))
    except OutputError as e:
        return _fail(e.reason) if e.reason else FAILED


def _run(arguments: Sequence[str]) -> int:
    chosen = next((a for a in arguments if a in COMMANDS), None)
    try:
        parser, chosen_parser = build_parser(chosen)
        refuse_command_of("softkin-train", TRAINING_COMMANDS, parser, arguments)
        options, unknown = parser.parse_known_args(arguments)
        if unknown:  # reported by the main parser, they would come with its usage and not the command's
            mine = chosen_parser or parser
            mine.error(unrecognized(mine, unknown))
        try:
            return COMMANDS[options.command].run(options)
        except UsageError as e:
            (chosen_parser or parser).error(str(e))
    except SoftkinError as e:
        return _fail(as_typed(e, COMMANDS[chosen].options if chosen else {}))
    except ModuleNotFoundError as e:
        extra = "service" if chosen in ("serve", "export-onnx") else "client"
        return _fail(f"{chosen} needs the Python package {e.name}: pip install 'softkin[{extra}]'")
    except FileNotFoundError as e:
        return _fail(lost_directory(e))
    except KeyboardInterrupt:
        return 130


def build_parser(chosen: str | None = None) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser | None]:
    """The parser, and that of the chosen sub-command, whose arguments alone are filled in."""
    parser = argparse.ArgumentParser(
        prog="softkin", description="Outlier detection for classifiers, at a false-alarm rate you choose."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen_parser = None
    for name, command in COMMANDS.items():
        # No abbreviations: one that is clear today is refused, or means something else, once there are more options.
        sub = commands.add_parser(name, help=command.help, description=command.help, allow_abbrev=False)
        if name == chosen:
            command.add_arguments(sub)
            chosen_parser = sub
    return parser, chosen_parser


def _fail(message: str) -> int:
    print(f"softkin: error: {message}", file=sys.stderr)
    return FAILED


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    from softkin import flags

    flags.add_flags(parser)


def _serve(options: argparse.Namespace) -> int:
    from softkin import flags, sources

    for warning in flags.warnings():
        print(f"softkin: warning: {warning}", file=sys.stderr)
    try:
        if options.print_config:
            print(flags.print_config(options))
            return 0
        settings = flags.from_flags(options)
    except InvalidInputError as e:
        name = sources.CONFIG
        names = {name: sources.flag(name) if name in options else sources.variable(name)}
        raise UsageError(as_typed(e, names)) from None
    from softkin.process import serve

    try:
        return serve(settings)
    except InvalidInputError as e:
        raise InvalidInputError(flags.as_set(e.field, options, settings), e.message) from None


def _target_arguments(
    parser: argparse.ArgumentParser,
    timeout_seconds: float = 30.0,
    target: str = "the server",
    timeout: str = "per call",
    required: bool = True,
) -> None:
    parser.add_argument("--target", required=required, metavar="HOST:PORT", help=target)
    parser.add_argument(
        "--timeout",
        type=float,
        default=parser.argument_default or timeout_seconds,
        metavar="SECONDS",
        help=f"{timeout} (default: {timeout_seconds:g})",
    )
    parser.add_argument(
        "--tls-ca", metavar="FILE", help="PEM file of the server's certificate authority (default: plaintext)"
    )
    parser.add_argument(
        "--tls-cert", metavar="FILE", help="PEM file of a client certificate, where the server asks for one"
    )
    parser.add_argument("--tls-key", metavar="FILE", help="PEM file of its private key")
    parser.add_argument(
        "--tls-server-name", metavar="NAME", help="name in the server's certificate (default: the target's host)"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="file whose first token goes with every call")


def _client(options: argparse.Namespace) -> Client:
    """A client for the server that was named, and for the detector where the command has `_detector_arguments`."""
    from softkin.client import Client

    chosen = {
        argument: getattr(options, name)
        for argument, name in (("detector", "detector"), ("version", "detector_version"), ("label", "label"))
        if hasattr(options, name)
    }
    return Client(options.target, **chosen, **_connection(options))


def _connection(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a client that `_target_arguments` stand for, except the target."""
    from softkin.bearer import read_tokens

    return {
        "timeout_seconds": options.timeout,
        "tls_ca": options.tls_ca,
        "tls_cert": options.tls_cert,
        "tls_key": options.tls_key,
        "tls_server_name": options.tls_server_name,
        "token": None if options.token_file is None else read_tokens(options.token_file)[0],
    }


def _detector_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detector", default="", metavar="NAME", help="detector (default: the only one loaded)")
    parser.add_argument(
        "--detector-version", default="", metavar="V", help="its version (default: the one that serves)"
    )
    parser.add_argument("--label", default="", metavar="L", help="or the label that it carries, such as canary")


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    _target_arguments(parser, timeout="to find the detector; scoring takes as long as there are rows")
    parser.add_argument(
        "file", metavar="FILE", help="arrays by name (.npz), or one (.npy); pickled objects are refused"
    )
    parser.add_argument("--key", metavar="NAME", help="array of an .npz file to score (default: x_test)")
    parser.add_argument("--limit", type=int, metavar="N", help="score the first N rows only")
    parser.add_argument("--alpha", type=float, metavar="A", help="rate to accept (default: the server's)")
    parser.add_argument(
        "--guarantee",
        metavar="G",
        help="marginal, certified, class_conditional or false_discovery_rate (default: the server's)",
    )
    parser.add_argument("--confidence", type=float, metavar="C", help="of the certified bound (default: the server's)")
    parser.add_argument("--smoothing-seed", type=int, metavar="N", help="smooth p-values at random (default: do not)")
    parser.add_argument(
        "--neighbors", type=int, default=0, metavar="K", help="nearest training rows to show (default: 0)"
    )
    _detector_arguments(parser)
    parser.add_argument("--flagged", action="store_true", help="show the rows that are flagged, and no others")
    parser.add_argument("--json", action="store_true", help="one JSON object per row, then one with the error budget")


def _score(options: argparse.Namespace) -> int:
    from softkin import score_display
    from softkin.joining import join

    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit: got {options.limit}; must be 1 or more")
    x = score_display.read_array(options.file, options.key)
    names = score_display.read_names(options.file, len(x))
    x = x[: options.limit]
    with _client(options) as client:
        classes = client.detector_info().classes
        answers = _answers(
            client,
            x,
            alpha=options.alpha,
            guarantee=options.guarantee,
            confidence=options.confidence,
            smoothing_seed=options.smoothing_seed,
            num_neighbors=options.neighbors,
        )
        scores = join(list(score_display.progress(answers, len(x))))
    show = score_display.print_json if options.json else score_display.print_table
    show(scores, classes, names=names, flagged_only=options.flagged)
    return 0


def _answers(client: Client, x: NDArray[np.generic], **asked: Any) -> Iterator[Scores]:
    """The answers for some rows at a time: of one stream, or of a call each from a server that has none to spare."""
    from softkin import score_display
    from softkin.client_errors import counted_from

    answers, answered = client.score_stream(score_display.in_steps(x), **asked), 0
    try:
        try:
            first = next(answers)
        except (OverloadedError, UnsupportedError):
            answers = (client.score(rows, **asked) for rows in score_display.in_steps(x))
            first = next(answers)
        for scores in itertools.chain([first], answers):
            answered += len(scores)
            yield scores
    except InvalidInputError as e:
        raise counted_from(e, answered) from None


def _drift_arguments(parser: argparse.ArgumentParser) -> None:
    _target_arguments(parser)
    _detector_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _drift(options: argparse.Namespace) -> int:
    from softkin import display

    with _client(options) as client:
        display.print_drift(client.drift(), as_json=options.json)
    return 0


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    _target_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per version")


def _status(options: argparse.Namespace) -> int:
    from softkin import display

    found = []
    with _client(options) as client:
        serving = client.check_health()
        for detector in client.detectors():
            with suppress(NotFoundError):  # unloaded meanwhile
                found.append((detector, client.drift(detector)))
    display.print_status(found, as_json=options.json)
    if not serving:
        return _fail(f"{options.target} is not serving")
    return 0


def _admin_arguments(parser: argparse.ArgumentParser) -> None:
    from softkin import admin_command

    # They may also come after the action; an option that is left out there must not undo one given before it.
    again = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    for place in parser, again:
        _target_arguments(place, timeout_seconds=600.0, target="the server's admin port", required=False)
    admin_command.add_arguments(parser, again)


def _admin(options: argparse.Namespace) -> int:
    from softkin import admin_command
    from softkin.admin_client import AdminClient

    if options.target is None:
        raise UsageError("the following arguments are required: --target")
    with AdminClient(options.target, **_connection(options)) as client:
        return admin_command.run(options, client)


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle directory")
    parser.add_argument("--verify", action="store_true", help="read every file; exit 1 if one is not the manifest's")
    parser.add_argument("--json", action="store_true", help="the manifest and its digest as JSON")


def _inspect(options: argparse.Namespace) -> int:
    from softkin import bundle, display

    if options.verify:
        manifest, digest = bundle.verify_files(options.bundle)
    else:
        manifest, digest = bundle.read_manifest(options.bundle), bundle.digest(options.bundle)
    display.print_manifest(manifest, digest, as_json=options.json, verified=options.verify)
    return 0


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle directory")
    parser.add_argument("out", metavar="OUT.onnx", help="model to write; its data go to OUT.onnx.data beside it")
    parser.add_argument("--force", action="store_true", help="replace files that exist")


def _export(options: argparse.Namespace) -> int:
    from softkin.export_onnx import export_onnx

    done = export_onnx(options.bundle, options.out, force=options.force)
    print(f"{done.model}: outputs {', '.join(done.outputs)}")
    print(f"{done.data}: {done.data_bytes / 1e6:.1f} MB")
    return 0


def _healthcheck(options: argparse.Namespace) -> int:
    with _client(options) as client:
        if not client.check_health():
            return _fail(f"{options.target} is not serving")
    print(f"{options.target} is serving")
    return 0


COMMANDS = {
    "serve": Command("Serve bundles over gRPC.", _serve_arguments, _serve),
    "score": Command("Score an array file against a server.", _score_arguments, _score, SCORE_OPTIONS),
    "status": Command(
        "Show what a server serves, and how much of it is flagged.", _status_arguments, _status, CONNECTION_OPTIONS
    ),
    "drift": Command("Show what a server's drift watch has seen.", _drift_arguments, _drift, DETECTOR_OPTIONS),
    "admin": Command("Load, unload and label detectors of a running server.", _admin_arguments, _admin, ADMIN_OPTIONS),
    "inspect": Command("Show a bundle's manifest; --verify proves its files, too.", _inspect_arguments, _inspect),
    "export-onnx": Command(
        "Write a bundle's whole detector as one ONNX model, for any runtime.", _export_arguments, _export
    ),
    "healthcheck": Command(
        "Exit 0 if a server is ready to score, 1 otherwise.", _target_arguments, _healthcheck, CONNECTION_OPTIONS
    ),
}

if __name__ == "__main__":
    sys.exit(main())
