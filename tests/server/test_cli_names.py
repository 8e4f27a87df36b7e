"""`softkin score` of a file that names its rows, as `softkin-train rows` writes it."""

from __future__ import annotations

import json

import numpy as np

from softkin import cli


def test_rows_are_called_by_the_names_in_the_file(shared_server, tmp_path, capsys):
    """As many as are asked for, those of the first rows."""
    np.savez(tmp_path / "x.npz", x_test=np.zeros((3, 2, 3), np.float32), names=["p-7", "p-8", "p-9"])

    assert cli.main(["score", "--target", shared_server.target, str(tmp_path / "x.npz"), "--limit", "2", "--json"]) == 0

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.get("name") for row in rows] == ["p-7", "p-8", None]
