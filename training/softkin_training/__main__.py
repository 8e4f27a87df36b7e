"""Entry point of `softkin-train`, and `python -m softkin_training`: Ctrl-C ends it quietly from the first import on."""

from __future__ import annotations

import sys


def main() -> int:
    """As `softkin_training.cli.main`; 130 where it is interrupted, also while it is being imported."""
    try:
        from softkin_training import cli

        return cli.main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
