"""Ablations that fail midway: which cell it was is told, and what is done stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from softkin import DataError, InvalidInputError
from softkin_training.ablate import ablate
from softkin_training.ablation_plan import FAR, Plan

QUICK = [
    *("training.epochs=1", "training.cpu_threads=1", "data.known_classes=[]"),
    *("model.channels=[4, 8]", "model.dense=16", "detector.max_dim=8"),
]
DENSITY = {"detector.nonconformity": "density"}
TOO_STRICT = {**DENSITY, "detector.precision": "int8", "detector.max_p_value_change": 1e-9}
AGAIN = "then run it again: what is done stays"


def run(out: Path, last: dict[str, object]) -> list[str]:
    """What is said while variants `a` and `b/c` of one network are built and evaluated."""
    said: list[str] = []
    plan = Plan(train={"plain": {"loss.weight": 0.0}}, detect={"a": DENSITY, "b/c": last}, families={FAR: ()})
    ablate("digits", plan, out, overrides=QUICK, seeds=(7,), rows=50, say=said.append)
    return said


def test_a_variant_that_fails_is_named_and_the_others_need_not_be_run_again(tmp_path: Path):
    """After a night one wants to know which of dozens it was; the remedy is that of the error itself."""
    with pytest.raises(DataError) as failed:
        run(tmp_path, TOO_STRICT)

    assert str(failed.value).startswith("all classes, plain, seed 7, b/c: ")
    assert str(failed.value).endswith(f"raise it, condense less, or keep more bits; {AGAIN}")
    kept = tmp_path / "all-classes" / "plain" / "seed7"
    written = {file: file.stat().st_mtime_ns for file in (kept / "checkpoint.pt", kept / "a" / "report.json")}
    assert run(tmp_path, {"detector.nonconformity": "posterior"}) == ["[1 of 1] all classes, plain, seed 7: b/c"]
    assert {file: file.stat().st_mtime_ns for file in written} == written


def test_a_training_that_fails_names_its_family_variant_and_seed(tmp_path: Path):
    """No detect variant has been reached, so none is named."""
    folder = tmp_path / "all-classes" / "plain" / "seed7"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(b"damaged")

    with pytest.raises(DataError) as failed:
        run(tmp_path, DENSITY)

    assert str(failed.value).startswith(f"all classes, plain, seed 7: {folder / 'checkpoint.pt'}")
    assert str(failed.value).endswith(AGAIN)


def test_a_full_disk_names_the_cell_and_its_remedy_once(tmp_path: Path):
    """An error that tells already how to go on is not told twice."""
    (tmp_path / "all-classes" / "plain" / "seed7").mkdir(parents=True)
    (tmp_path / "all-classes" / "plain" / "seed7" / "b-c").touch()  # in the place of the folder

    with pytest.raises(InvalidInputError) as failed:
        run(tmp_path, DENSITY)

    where = tmp_path / "all-classes" / "plain" / "seed7" / "b-c"
    assert failed.value.field == "out"
    assert failed.value.message.startswith(f"all classes, plain, seed 7, b/c: cannot write {where} (")
    assert failed.value.message.count("run it again") == 1
    assert failed.value.message.endswith("or choose another folder")


def test_a_fault_that_nobody_foresaw_names_the_cell_below_its_traceback(tmp_path: Path, monkeypatch):
    """It stays what it was: its traceback says where in the code."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("of a library")

    monkeypatch.setattr("softkin_training.ablate.build_step", fail)

    with pytest.raises(ZeroDivisionError) as failed:
        run(tmp_path, DENSITY)
    assert (failed.value.args, failed.value.__notes__) == (
        ("of a library",),
        ["all classes, plain, seed 7, a; run it again: what is done stays"],
    )


def test_a_training_that_cannot_be_written_speaks_of_no_option_that_ablate_lacks(tmp_path: Path):
    """It goes on by itself: there is no --resume."""
    folder = tmp_path / "all-classes" / "plain" / "seed7"
    (folder / "history.jsonl").mkdir(parents=True)  # in the place of the file

    with pytest.raises(InvalidInputError) as failed:
        run(tmp_path, DENSITY)

    assert failed.value.message.startswith(f"all classes, plain, seed 7: cannot write to {folder}")
    assert failed.value.message.endswith("make room, then run it again: what is done stays")
