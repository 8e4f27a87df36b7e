"""Ablations: every cell once, also after an interruption, and figures that are means over them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import ttest_rel

from softkin import InvalidInputError, RecipeError
from softkin_training import ablation_table
from softkin_training.ablate import _drawn, _toml, ablate
from softkin_training.ablation_plan import FAR, Cell, Plan, load_plan
from softkin_training.cli import main
from softkin_training.config import load_recipe
from softkin_training.data import Dataset
from softkin_training.report_terminal import print_ablation
from softkin_training.rows import Rows

QUICK = [
    *("training.epochs=1", "training.cpu_threads=1", "data.known_classes=[]"),
    *("model.channels=[4, 8]", "model.dense=16", "detector.max_dim=8"),
]
PLAN = Plan(
    train={"plain": {"loss.weight": 0.0}, "entangled": {"loss.weight": -0.1}},
    detect={
        "density": {"detector.nonconformity": "density"},
        "joint": {
            "detector.nonconformity": "joint",
            "detector.joint_parts": ["energy", "density"],
            "detector.layers": ["conv2", "dense"],
        },
    },
    families={FAR: (), "8 + 9": (8, 9)},
)
ONE = dataclasses.replace(PLAN, train={"plain": {"loss.weight": 0.0}}, families={FAR: ()})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """An ablation of the digits: 2 variants, 2 forms, 2 families, one seed."""
    out, said = tmp_path_factory.mktemp("ablation"), []
    return out, ablate("digits", PLAN, out, overrides=QUICK, seeds=(0,), rows=50, say=said.append), said


def test_every_cell_is_run_once(done):
    """2 x 2 x 2 reports of 4 trainings; bundles are not kept."""
    out, cells, said = done

    assert len({(c.family, c.train, c.detect, c.seed) for c in cells}) == len(cells) == 8
    assert said[0] == "[1 of 4] all classes, plain, seed 0: density, joint"
    assert len(said) == 4
    assert not list(out.rglob("bundle"))
    assert all("unknown digits" in c.report["scores"]["softkin"]["outliers"] for c in cells if c.family != FAR)
    text = ablation_table.markdown(ablation_table.summarise(cells))
    assert "| softkin: joint | entangled |" in text
    assert "near auroc" in text


@pytest.mark.parametrize("gone", ["recipe.json", "report.json"])
def test_a_stopped_ablation_goes_on_where_it_was(done, gone):
    """Only the cell that is missing runs again, with the same figures; a done one is not touched, nor an older one.

    The first detector says how layers are projected, also where only a later one, of fewer layers, is missing.
    """
    out, cells, _ = done
    lost = out / "8-+-9" / "entangled" / "seed0" / "joint"
    kept = out / "8-+-9" / "entangled" / "seed0" / "density" / "report.json"
    written = kept.stat().st_mtime_ns
    before = json.loads((lost / "report.json").read_text())
    (lost / gone).unlink()
    older = json.loads((kept.parent / "recipe.json").read_text())
    older["detector"].pop("whiten", None)  # a key that came later, at its default
    (kept.parent / "recipe.json").write_text(json.dumps(older))
    said: list[str] = []

    again = ablate("digits", PLAN, out, overrides=QUICK, seeds=(0,), rows=50, say=said.append)

    assert said == ["[4 of 4] 8 + 9, entangled, seed 0: joint"]
    assert kept.stat().st_mtime_ns == written
    after = json.loads((lost / "report.json").read_text())
    assert after["scores"]["softkin"] == before["scores"]["softkin"]
    assert len(again) == len(cells)


def test_a_variant_of_another_metric_has_an_export_of_its_own(tmp_path: Path):
    """It scores as it does alone, from a network trained alike; and what others share stays what it was."""
    lengths = {
        "detector.metric": {"conv1": "cosine", "dense": "squared_euclidean"},
        "detector.layers": ["conv1", "dense"],
    }
    both = dataclasses.replace(
        ONE, detect={"a": {"detector.layers": ["conv2"]}, "lengths": lengths, "b": {"detector.layers": ["conv2"]}}
    )

    def scores(plan: Plan, out: Path) -> dict[str, object]:
        cells = ablate("digits", plan, out, overrides=QUICK, seeds=(0,), rows=50, say=lambda _: None)
        return {c.detect: c.report["scores"]["softkin"] for c in cells}

    together = scores(both, tmp_path / "both")
    alone = scores(dataclasses.replace(ONE, detect={"lengths": lengths}), tmp_path / "alone")
    plain = {**lengths, "detector.metric": "cosine"}
    cosine = scores(dataclasses.replace(ONE, detect={"lengths": plain}), tmp_path / "cosine")

    assert together["lengths"] == alone["lengths"] != cosine["lengths"]
    assert together["a"] == together["b"] != together["lengths"]


@pytest.mark.parametrize("recipe", ["mnist", "fashion_mnist"])
def test_the_default_plan_fits_the_recipes_that_it_is_for(recipe):
    """Its last detector is the one that they ship."""
    variants = [
        load_recipe(recipe, ["data.path=x.npz", *(f"{k}={_toml(v)}" for k, v in keys.items())])
        for keys in load_plan().detect.values()
    ]

    assert variants[-1].detector == load_recipe(recipe, ["data.path=x.npz"]).detector
    assert len({v.detector.model_dump_json() for v in variants}) == len(variants)


def test_figures_are_means_deviations_and_paired_differences_over_seeds():
    """Against plain loops, on made-up reports of 4 seeds, 2 networks and 2 families."""
    rng = np.random.default_rng(0)
    aurocs = rng.random((2, 2, 4, 2))  # network, family, seed, outlier set

    def report(values: np.ndarray, near: bool) -> dict:
        names = ["held-out classes", "elsewhere"] if near else ["a", "b"]
        sets = {n: {"auroc": float(v), "caught": {"value": float(v) / 2}} for n, v in zip(names, values, strict=True)}
        score = {"title": "own", "false_alarms": {"value": 0.05}, "outliers": sets}
        return {"accuracy": float(values[0]), "scores": {"softkin": score}}

    cells = [
        Cell(family=family, train=train, detect="d", seed=seed, report=report(aurocs[i, j, seed], family != FAR))
        for i, train in enumerate(("plain", "entangled"))
        for j, family in enumerate((FAR, "pair"))
        for seed in range(4)
    ]

    table = ablation_table.summarise(cells)

    plain, entangled = table["rows"]
    far = aurocs[:, 0].mean(axis=2)
    assert plain["far_auroc"]["mean"] == pytest.approx(far[0].mean())
    assert entangled["far_auroc"]["sd"] == pytest.approx(far[1].std(ddof=1))
    assert entangled["near_auroc"]["mean"] == pytest.approx(aurocs[1, 1, :, 0].mean())  # held-out classes alone
    assert entangled["near_caught"]["mean"] == pytest.approx(aurocs[1, 1, :, 0].mean() / 2)
    assert entangled["paired"]["far_auroc"]["difference"] == pytest.approx((far[1] - far[0]).mean())
    assert entangled["paired"]["far_auroc"]["p"] == pytest.approx(ttest_rel(far[1], far[0]).pvalue)
    assert entangled["paired"]["false_alarms"] == {"difference": 0.0, "p": None}
    assert table["accuracy"]["entangled"]["mean"] == pytest.approx(aurocs[1, 0, :, 0].mean())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train = 3", r"\[train\] must hold at least one table of recipe keys"),
        ("[train]\n[detect.b]", r"\[train\] must hold at least one table of recipe keys"),
        ("[train.a]\n[train]\nb = 1\n[detect.b]", r"\[train\] must hold at least one table of recipe keys"),
        ("[train.a]", r"\[detect\] must hold at least one table of recipe keys"),
        ("[train.z]\nname='z'\n[train.a]\nloss.weight = 1.0\n[detect.b]", 'train.a: quote the key: "loss.KEY" = VALUE'),
        ("[train.a]\n[detect.b]\n[held_out]\nw = [1]\nx = [1, 1.5]", "held_out.x must be a list of class numbers"),
        ("[train.a]\n[detect.b]\n[held_out]\nx = 3", "held_out.x must be a list of class numbers, got 3"),
        (
            "[train.a]\n[detect.b]\n[held_out]\n'all classes' = [8]",
            "all classes: with that name nothing is held out; choose",
        ),
        ("[train.a]\n[detect.b]\n[held_out]\nx = []", "held_out.x must be a list of class numbers"),
        ("[train.a]\n[detect.b]\n[held_out]\nx = [true]", "held_out.x must be a list of class numbers"),
        ("held_out = 5\n[train.a]\n[detect.b]", "held_out is 5; it must be a table"),
        ("[other]\n", "unknown table 'other'; allowed: train, detect, held_out"),
        ("train", "cannot be read as a plan"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path: Path, text, message):
    """The error names the file, the table and what is allowed."""
    file = tmp_path / "plan.toml"
    file.write_text(text)

    with pytest.raises(RecipeError, match=message) as caught:
        load_plan(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detect": {"a": {}, "b": {"training.epochs": 9}}}, "'b' and 'a' differ in training.epochs"),
        (
            {"detect": {"a": {"detector.layers": ["conv2"]}, "b": {"detector.layers": ["conv1"]}}},
            r"'b' has the layers 'conv1', which 'a' lacks",
        ),
        ({"detect": {"x/y": {}, "x y": {}}}, r"\[detect\] 'x/y' and 'x y' mean one folder, 'x-y'"),
        ({"train": {"a": {}, "a ": {"loss.weight": 1.0}}}, r"\[train\] 'a' and 'a ' mean one folder"),
        ({"families": {FAR: (), "all/classes": (8,)}}, r"\[held_out\] 'all classes' and 'all/classes' mean one folder"),
        ({"families": {FAR: (), "ten": (9, 10)}}, "held_out.ten has class 10; the data have 0 to 9"),
    ],
    ids=["another network", "layers", "one folder", "one folder, train", "one folder, family", "class"],
)
def test_a_plan_whose_cells_could_not_be_told_apart_is_refused(tmp_path: Path, changes, message):
    """A variant that would be ignored, or read another's report, must not appear in the table under its own name."""
    plan = dataclasses.replace(PLAN, **changes)

    with pytest.raises(RecipeError, match=message):
        ablate("digits", plan, tmp_path / "out", overrides=QUICK, seeds=(0,))
    assert not (tmp_path / "out").exists()


def test_cells_are_evaluated_anew_on_another_number_of_rows(done, tmp_path: Path):
    """Else a table would mix what was asked for with what was asked for before; so is a cell that cannot be read."""
    out = shutil.copytree(done[0] / "all-classes" / "plain", tmp_path / "all-classes" / "plain").parents[1]
    files = {name: out / "all-classes" / "plain" / "seed0" / name / "recipe.json" for name in PLAN.detect}
    older = json.loads(files["joint"].read_text())
    del older["rows evaluated"]  # as before it was written down
    files["joint"].write_text(json.dumps(older))
    files["density"].write_text("[]")
    said: list[str] = []

    def rows_of(rows: int) -> list[int]:
        cells = ablate("digits", ONE, out, overrides=QUICK, seeds=(0,), rows=rows, say=said.append)
        return [cell.report["inlier_rows"] for cell in cells]

    assert [rows_of(50), rows_of(40)] == [[50, 50], [40, 40]]
    assert said == [f"[1 of 1] all classes, plain, seed 0: {names}" for names in ("density", "density, joint")]
    assert [json.loads(file.read_text())["rows evaluated"] for file in files.values()] == [40, 40]


def test_a_cell_is_evaluated_on_rows_from_all_over_the_source():
    """Folders of images come in order of class: of the first rows, figures would be those of the first classes."""
    x, y = np.arange(1000), np.arange(1000) // 100
    rows = Rows(x, y, x)
    sorted_by_class = Dataset(rows, rows, rows, {"letters": x[:400]}, tuple("0123456789"))

    drawn, again = _drawn(sorted_by_class, 200), _drawn(sorted_by_class, 200)

    assert len(drawn.test) == len(set(drawn.test.x)) == len(set(drawn.outliers["letters"])) == 200
    assert np.bincount(drawn.test.y).min() > 10
    assert (drawn.outliers["letters"] >= 300).sum() > 30
    np.testing.assert_array_equal(again.test.x, drawn.test.x)  # or differences between cells were not paired
    np.testing.assert_array_equal(_drawn(sorted_by_class, 1000).test.x, x)
    assert len(drawn.calibration) == 1000


def test_a_recipe_need_not_be_valid_without_a_variant(done):
    """What it lacks may be what all variants bring; only where classes are held out is it read by itself."""
    lacking = [*QUICK, "detector.precision=auto"]
    detect = {name: {**keys, "detector.precision": "float32"} for name, keys in PLAN.detect.items()}
    said: list[str] = []

    cells = ablate(
        "digits",
        dataclasses.replace(ONE, detect=detect),
        done[0],
        overrides=lacking,
        seeds=(0,),
        rows=50,
        say=said.append,
    )

    assert (len(cells), said) == (2, [])  # float32 is what the recipe has anyway: they are done


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    """In our words, with the folder's name."""
    (tmp_path / "file").touch()

    with pytest.raises(
        InvalidInputError, match=r"out: all classes, plain, seed 0: cannot write .*file.* another folder"
    ):
        ablate("digits", PLAN, tmp_path / "file", overrides=QUICK, seeds=(0,), say=lambda line: None)
    with pytest.raises(InvalidInputError, match=r"out: cannot write to .*nowhere"):
        ablation_table.write_table([made_up("a", FAR, 0, 0.5)], tmp_path / "nowhere")


def test_a_data_file_that_fails_is_not_blamed_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another folder would not help."""

    def fail(recipe: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "data.npz"))

    monkeypatch.setattr("softkin_training.ablate.load_dataset", fail)

    with pytest.raises(PermissionError, match=r"data\.npz"):
        ablate("digits", PLAN, tmp_path / "out", overrides=QUICK, seeds=(0,), say=lambda line: None)


def test_a_table_shows_names_as_they_are(tmp_path: Path):
    """A bar in a name starts no column."""
    text = ablation_table.write_table([made_up("a|b", FAR, 0, 0.5), made_up("*c*", FAR, 0, 0.5)], tmp_path)

    assert text == (tmp_path / "ablation.md").read_text()
    assert "| a\\|b | 0.5000 +- 0.0000 |" in text
    assert "| own | \\*c\\* |" in text.replace("softkin: d", "own")


def test_the_command_prints_means_that_fit_a_terminal_and_says_where_the_rest_is(done, tmp_path: Path, capsys):
    """80 columns; nothing is left to do, so that nothing else is said."""
    plan = tmp_path / "plan.toml"
    plan.write_text(
        "\n".join(
            f"[{kind}.{name}]\n" + "\n".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in keys.items())
            for kind, variants in (("train", PLAN.train), ("detect", PLAN.detect))
            for name, keys in variants.items()
        )
        + '\n[held_out]\n"8 + 9" = [8, 9]\n'
    )
    command = ["ablate", "digits", "--plan", str(plan), "--out", str(done[0]), "--seeds", "1", "--rows", "50"]

    status = main([*command, *(x for override in QUICK for x in ("--set", override))])

    shown = capsys.readouterr().out
    *tables, deviations, paired = shown.splitlines()
    assert status == 0
    assert max(map(len, tables)) <= 80
    assert all(word in shown for word in ("entangled", "energy", "caught", "alarms"))
    assert (deviations, paired) == (
        f"deviations: {done[0] / 'ablation.md'}",
        f"paired differences: {done[0] / 'ablation.json'}",
    )


@pytest.mark.parametrize("option", ["--seeds", "--rows"])
def test_a_number_of_nothing_is_refused_by_its_option(tmp_path, capsys, option):
    """By that one alone: the other may be right."""
    assert main(["ablate", "digits", "--out", str(tmp_path / "out"), option, "0"]) == 1
    assert capsys.readouterr().err == f"softkin-train: error: {option}: got 0; must be at least 1\n"


def test_a_terminal_shows_names_as_they_are_and_means_of_what_there_is(capsys):
    """Markup colours nothing; a variant without near outliers has none to show."""
    cells = [made_up("[red]a\x1b", FAR, s, 0.5 + s / 10) for s in range(3)] + [made_up("b", FAR, 0, 0.25)]

    print_ablation(ablation_table.summarise(cells))

    shown = capsys.readouterr().out
    assert "[red]a\\x1b" in shown
    assert "\x1b" not in shown
    assert "0.6000" in shown
    assert "-0.2500" in shown
    assert "near" not in shown


def test_a_family_without_test_rows_of_its_classes_has_no_near_figures():
    """A mean over nothing is no number, and no JSON."""
    cells = [made_up("a", FAR, 0, 0.5), made_up("a", "pair", 0, 0.5)]

    (row,) = ablation_table.summarise(cells)["rows"]

    assert "near_auroc" not in row
    assert row["far_auroc"]["mean"] == 0.5


def made_up(train: str, family: str, seed: int, auroc: float) -> Cell:
    """A cell with one outlier set."""
    sets = {"elsewhere": {"auroc": auroc, "caught": {"value": auroc}}}
    score = {"title": "own", "false_alarms": {"value": 0.05}, "outliers": sets}
    report = {"accuracy": auroc, "scores": {"softkin": score}}
    return Cell(family=family, train=train, detect="d", seed=seed, report=report)


def test_a_cell_that_was_stopped_while_it_was_written_is_run_again(done, tmp_path: Path, monkeypatch):
    """Its old recipe.json stood beside the new report.json, so that figures on 40 rows counted as those on 50."""
    out = shutil.copytree(done[0] / "all-classes" / "plain", tmp_path / "all-classes" / "plain").parents[1]

    def rows_of(rows: int) -> list[int]:
        cells = ablate("digits", ONE, out, overrides=QUICK, seeds=(0,), rows=rows, say=lambda line: None)
        return [cell.report["inlier_rows"] for cell in cells]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # Its bundle is removed once the report is written.
        patch.setattr("softkin_training.ablate.shutil", SimpleNamespace(copyfile=shutil.copyfile, rmtree=killed))
        with pytest.raises(KeyboardInterrupt):
            rows_of(40)

    assert rows_of(50) == [50, 50]


def test_a_variant_that_became_another_is_refused_with_a_remedy_that_ablate_has(done, tmp_path: Path):
    """It knows no --resume."""
    out = shutil.copytree(done[0] / "all-classes" / "plain", tmp_path / "all-classes" / "plain").parents[1]
    other = dataclasses.replace(ONE, train={"plain": {"loss.weight": -0.2}})

    with pytest.raises(RecipeError, match=r"loss\.weight: 0\.0 -> -0\.2; undo that, or remove .*/seed0: it is") as e:
        ablate("digits", other, out, overrides=QUICK, seeds=(0,), rows=50, say=lambda line: None)
    assert "--resume" not in str(e.value)
