"""What `softkin-train recalibrate` says of rows that do not go with the bundle's own, and of vectors."""

from __future__ import annotations

import numpy as np
import pytest

from fresh_rows import inliers, write_npz
from softkin_training.cli import main

DOUBT = "\nthe chance that so many are by luck is "


@pytest.mark.parametrize(("spread", "grow", "doubted"), [(1.0, True, False), (1.5, True, True), (1.5, False, False)])
def test_rows_of_another_source_are_not_for_growing(tiny, tmp_path, capsys, spread, grow, doubted):
    """Of both together alpha is the rate of neither; alone they calibrate as well as any."""
    file = write_npz(tmp_path / "rows.npz", inliers(tiny, 200, seed=17, spread=spread))
    arguments = ["recalibrate", str(tiny.path), "--data", str(file), "--out", str(tmp_path / "b")]

    assert main([*arguments, *(["--grow"] if grow else [])]) == 0

    text = capsys.readouterr().out
    assert (DOUBT in text) == doubted
    assert ("--grow is for more of the same inliers" in text) == doubted


def test_vectors_have_no_classifier_whose_accuracy_could_be_told(tmp_path, capsys):
    """Their class is the nearest one."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    np.savez(tmp_path / "v.npz", x_train=rng.normal(size=(300, 4)) + 9 * y[:, None], y_train=y)
    np.savez(tmp_path / "c.npz", x_test=rng.normal(size=(60, 4)) + 9 * y[:60, None], y_test=y[:60])
    files = ["--embeddings", str(tmp_path / "v.npz"), "--metric", "squared_euclidean"]
    assert main(["fit", *files, "--out", str(tmp_path / "e")]) == 0

    arguments = ["--data", str(tmp_path / "c.npz"), "--out", str(tmp_path / "r")]
    assert main(["recalibrate", str(tmp_path / "e" / "bundle"), *arguments]) == 0

    text = capsys.readouterr().out
    assert "; the accuracy of the nearest class on them is 100.0%\n" in text
    assert "the classifier's accuracy" not in text
