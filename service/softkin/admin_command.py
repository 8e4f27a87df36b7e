"""`softkin admin`: load, unload, label, unlabel, list."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from functools import partial

from softkin.admin_client import AdminClient
from softkin.descriptions import DetectorInfo
from softkin.display import print_detectors, spelled
from softkin.registry import STABLE


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the actions, each with its own arguments and those of `common`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = partial(actions.add_parser, parents=[common], allow_abbrev=False)

    load = add("load", help="load a bundle beside what is served")
    load.add_argument("path", metavar="PATH", help="bundle directory, relative to the server's --bundle-root")
    load.add_argument(
        "--label", action="append", default=[], metavar="L", help="label to give it once it serves; may be repeated"
    )

    unload = add("unload", help="stop serving a version; calls in flight finish on it")
    unload.add_argument("name", metavar="NAME", help="detector")
    unload.add_argument("version", metavar="VERSION", help="its version; must carry no label")

    label = add("label", help="move a label: promotion, or rollback when moved back")
    label.add_argument("name", metavar="NAME", help="detector")
    label.add_argument("version", metavar="VERSION", help="the version that shall carry the label")
    label.add_argument("label", metavar="LABEL", help="'stable' serves by default, 'shadow' scores silently")
    label.add_argument("--force", action="store_true", help="promote although the shadow comparison speaks against it")

    unlabel = add("unlabel", help="take a label away")
    unlabel.add_argument("name", metavar="NAME", help="detector")
    unlabel.add_argument("label", metavar="LABEL", help="the label")

    listing = add("list", help="show what is loaded, and who carries which label")
    listing.add_argument("--json", action="store_true", help="one JSON object per version")


def run(options: argparse.Namespace, client: AdminClient) -> int:
    """Do what was asked for, and say in a line what has changed.

    Raises:
        SoftkinError: the server refuses, or cannot be reached.
    """
    match options.action:
        case "load":
            d = client.load(options.path, options.label)
            print(spelled(f"{d.name} {d.version} is loaded on {d.device}, digest {d.digest[:12]}{_labels(d)}"))
        case "unload":
            client.unload(options.name, options.version)
            print(f"{options.name} {options.version} is unloaded")
        case "label":
            before = client.set_label(options.name, options.version, options.label, force=options.force)
            print(f"{options.label} is {options.name} {options.version}; before: {before or 'none'}")
        case "unlabel":
            before = client.remove_label(options.name, options.label)
            now = "; by default the version loaded last serves now" if options.label == STABLE else ""
            print(f"no version of {options.name} is {options.label}; before: {before}{now}")
        case "list":
            _print(client.detectors(), as_json=options.json)
    return 0


def _labels(d: DetectorInfo) -> str:
    return f", labels: {', '.join(d.labels)}" if d.labels else ""


def _print(detectors: Sequence[DetectorInfo], *, as_json: bool) -> None:
    if as_json:
        for d in detectors:
            print(json.dumps(dataclasses.asdict(d), allow_nan=False))
        return
    print_detectors(["calibration rows"], [(d, [str(d.calibration_size)]) for d in detectors])
