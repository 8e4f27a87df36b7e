"""Entry point of `softkin`, and `python -m softkin`: Ctrl-C ends it quietly from the first import on."""

from __future__ import annotations

import sys


def main() -> int:
    """Run `softkin.cli.main`; the status is 130 when it is interrupted, even while it is being imported."""
    try:
        from softkin.device import limit_blas_threads

        limit_blas_threads()
        from softkin import cli

        return cli.main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
