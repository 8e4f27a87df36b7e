"""Ablations that are refused before anything is trained, and what they are told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from softkin import RecipeError
from softkin_training.ablate import _recipes, ablate
from softkin_training.ablation_plan import FAR, Plan, load_plan
from softkin_training.cli import main

PLAN = Plan(train={"plain": {"loss.weight": 0.0}}, detect={"density": {}}, families={FAR: (), "8 + 9": (8, 9)})


def test_a_key_that_no_recipe_has_is_refused_before_anything_is_trained(tmp_path: Path, capsys):
    """Through the command line: status 1, nothing written; it says that the key is the plan's."""
    plan = tmp_path / "plan.toml"
    plan.write_text('[train.a]\n"loss.wait" = 1.0\n[detect.b]\n', encoding="utf-8-sig")  # as other systems write it

    status = main(["ablate", "digits", "--plan", str(plan), "--out", str(tmp_path / "out")])

    assert status == 1
    error = capsys.readouterr().err
    assert error.startswith("softkin-train: error: train 'a' with detect 'b' of the plan: ")
    assert "loss.wait is unknown" in error
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_some_classes_is_told_how_to_follow_the_plan_that_ships(tmp_path: Path, capsys):
    """That of the demo is the first that anybody tries."""
    assert main(["ablate", "digits", "--out", str(tmp_path / "out")]) == 1

    assert capsys.readouterr().err == (
        "softkin-train: error: data.known_classes is [0, 1, 2, 3, 4, 5, 6, 7]; must be empty where a plan holds "
        "classes out: --set 'data.known_classes=[]', or --plan FILE with one that has no [held_out]\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_plan_may_give_each_layer_its_weight(tmp_path: Path, capsys):
    """The table reaches the recipe as it is: here it is refused there, for a layer that has no term."""
    plan = tmp_path / "plan.toml"
    plan.write_text('[train.a]\n"loss.weight" = { dense1 = -0.1, nowhere = 0.03 }\n[detect.b]\n')

    status = main(["ablate", "digits", "--plan", str(plan), "--out", str(tmp_path / "out")])

    assert status == 1
    assert "loss.weight is {'dense1': -0.1, 'nowhere': 0.03}: needs exactly one number" in capsys.readouterr().err


def test_an_ablation_under_torchrun_is_refused(tmp_path: Path, monkeypatch):
    """There every process but the first would end with the first training."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(RecipeError, match=r"ablate cannot run under torchrun; start it once, with --set training.devi"):
        ablate("digits", PLAN, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_built_in_plan_fits_the_recipe_it_was_made_for():
    """It names variants, forms and the three near pairs."""
    plan = load_plan()

    assert next(iter(plan.train)) == "plain"
    assert set(plan.families) == {FAR, "pullover + ankle boot", "sandal + shirt", "trouser + bag"}


def test_a_family_without_two_classes_left_is_refused_before_anything_is_trained(tmp_path: Path):
    """No class at all would read as every class: the family would have learned what it was to hold out."""
    for held_out in (range(10), range(9)):
        plan = dataclasses.replace(PLAN, families={"too many": tuple(held_out)})

        with pytest.raises(RecipeError, match=rf"held_out\.too many leaves {10 - len(held_out)} of the 10 classes"):
            ablate("digits", plan, tmp_path / "out", overrides=["data.known_classes=[]"], seeds=(0,))
    assert not (tmp_path / "out").exists()


def test_a_family_of_two_classes_learns_them():
    """The fewest that a classifier tells apart."""
    plan = dataclasses.replace(PLAN, families={"two left": tuple(range(1, 9))})

    ((family, variant, seed, recipes),) = _recipes("digits", plan, ["data.known_classes=[]"], (5,))

    assert (family, variant, seed, list(recipes)) == ("two left", "plain", 5, ["density"])
    assert (list(recipes["density"].data.known_classes), recipes["density"].seed) == ([0, 9], 5)


def test_classes_of_a_file_are_counted_by_their_names(tmp_path: Path):
    """Before anything is trained; the first of two that there are not is named."""
    np.savez(tmp_path / "three.npz", class_names=np.array(["a", "b", "c"]))
    of_file = [f"data.path={tmp_path / 'three.npz'}", "data.source=npz", "data.known_classes=[]", "data.test_rows=0"]
    plan = dataclasses.replace(PLAN, families={"c": (2,), "more": (2, 4, 3)})

    with pytest.raises(RecipeError, match=r"held_out\.more has class 4; the data have 0 to 2"):
        ablate("digits", plan, tmp_path / "out", overrides=of_file, seeds=(0,))
    assert not (tmp_path / "out").exists()
