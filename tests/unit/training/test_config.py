"""Recipes: what loads, and what every refusal says."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from softkin.conformal import smallest_p_value
from softkin.errors import RecipeError
from softkin_training.cli import main
from softkin_training.config import BUILTIN_RECIPES, Recipe, load_recipe
from softkin_training.split import REFERENCE_SHARE, rows_for_alpha

pytestmark = pytest.mark.training

RECIPE = """
name = "tiny"
[data]
source = "digits"
calibration_rows = 100
test_rows = 50
[model]
kind = "cnn"
channels = [4, 8]
dense = 16
[loss]
layers = ["conv1"]
weight = -0.1
[training]
epochs = 1
batch_size = 32
learning_rate = 1e-3
[detector]
layers = ["conv1", "dense"]
bank_rows = 100
"""


@pytest.fixture
def recipe_file(tmp_path):
    """The recipe above, on disk."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize("name", sorted(p.stem for p in BUILTIN_RECIPES.glob("*.toml")))
def test_every_recipe_that_ships_loads_under_its_own_name(name):
    """A bare name means a recipe of the package."""
    assert load_recipe(name).name == name


def test_the_three_promised_recipes_ship():
    """Their names are part of the interface."""
    assert {"digits", "mnist", "fashion_mnist"} <= {p.stem for p in BUILTIN_RECIPES.glob("*.toml")}


def test_a_recipe_survives_json(recipe_file):
    """to_dict is JSON-able, and from it the same recipe can be made."""
    recipe = load_recipe(recipe_file)

    assert Recipe.model_validate(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_recipe_cannot_be_changed_after_loading(recipe_file):
    """What was checked stays as it was checked."""
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe(recipe_file).training.epochs = 7


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("training.epochs=7", "training", "epochs", 7),
        ("training.learning_rate = 0.5", "training", "learning_rate", 0.5),
        ("training.learning_rate=1", "training", "learning_rate", 1.0),
        ("detector.metric=squared_euclidean", "detector", "metric", "squared_euclidean"),
        ('loss.layers=["conv1", "conv2"]', "loss", "layers", ["conv1", "conv2"]),
        ("loss.weight={conv1=-0.5}", "loss", "weight", {"conv1": -0.5}),
        ("loss.temperature=learned", "loss", "temperature", "learned"),
        ("loss.temperature_step=0", "loss", "temperature_step", 0.0),
        ("training.devices=2", "training", "devices", 2),
        ("data.outliers.letters=some/file.npz", "data", "outliers", {"letters": "some/file.npz"}),
    ],
    ids=[
        "integer",
        "float with spaces",
        "integer for float",
        "bare string",
        "list",
        "table",
        "name",
        "zero",
        "count",
        "nested key",
    ],
)
def test_an_override_replaces_a_value(recipe_file, override, section, key, expected):
    """The value is read as TOML, and as a plain string where it is none."""
    recipe = load_recipe(recipe_file, [override])

    assert getattr(getattr(recipe, section), key) == expected


def test_a_weight_may_differ_by_layer(recipe_file):
    """One number serves all layers, a table serves each its own."""
    one = load_recipe(recipe_file, ['loss.layers=["conv1", "conv2"]'])
    each = load_recipe(recipe_file, ['loss.layers=["conv1", "conv2"]', "loss.weight={conv1=-1, conv2=0.5}"])

    assert [one.loss.weight_of(x) for x in one.loss.layers] == [-0.1, -0.1]
    assert [each.loss.weight_of(x) for x in each.loss.layers] == [-1.0, 0.5]


def test_a_metric_may_differ_by_layer(recipe_file):
    """One metric serves all layers, a table serves each its own; cosine is the default."""
    default = load_recipe(recipe_file).detector
    one = load_recipe(recipe_file, ["detector.metric=squared_euclidean"]).detector
    table = 'detector.metric={conv1="cosine", dense="squared_euclidean"}'
    each = load_recipe(recipe_file, [table]).detector

    assert [default.metric_of(x) for x in default.layers] == ["cosine", "cosine"]
    assert [one.metric_of(x) for x in one.layers] == ["squared_euclidean", "squared_euclidean"]
    assert [each.metric_of(x) for x in each.layers] == ["cosine", "squared_euclidean"]
    assert (
        load_recipe(recipe_file, [table, 'detector.layers=["dense"]']).detector.metric_of("dense")
        == "squared_euclidean"
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.kind=mlp", "model.channels=[]", "model.dense=0", "model.hidden=[8, 4]"], ("dense1", "dense2")),
        ([], ("conv1", "conv2", "dense")),
    ],
    ids=["mlp", "cnn"],
)
def test_hidden_layers_follow_from_the_kind(recipe_file, overrides, expected):
    """The names that loss.layers and detector.layers may use."""
    layers = [f"loss.layers={[expected[0]]}", f"detector.layers={[expected[0]]}"]

    assert load_recipe(recipe_file, [*overrides, *layers]).model.hidden_layers == expected


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epoch=3", ["training.epoch is unknown; did you mean 'epochs'? allowed keys: epochs, batch_size"]),
        ("epochs=3", ["epochs is unknown; did you mean training.epochs? allowed keys: name, version, seed"]),
        ("optimizer.name=adam", ["optimizer is unknown", "allowed keys: name, version, seed, data"]),
        ("training.epochs=0", ["training.epochs is 0: must be a whole number of at least 1"]),
        ("training.epochs=2.5", ["training.epochs is 2.5: must be a whole number of at least 1"]),
        ("training.epochs=true", ["training.epochs is True: must be a whole number of at least 1"]),
        ("training.epochs='5'", ["training.epochs is '5': must be", "; write training.epochs = 5, without quotes"]),
        ("training=3", ["training is 3: must be a section with the keys epochs, batch_size"]),
        ("training.learning_rate=fast", ["training.learning_rate is 'fast': must be a number of more than 0"]),
        ("training.learning_rate=nan", ["training.learning_rate is nan: must be a finite number of more than 0"]),
        ("training.devices=0", ["training.devices is 0: must be a whole number of at least 1"]),
        ("training.devices=17", ["training.devices is 17", "at least 2 rows of batch_size = 32"]),
        ("training.probe_rows=-1", ["training.probe_rows is -1: must be a whole number of at least 0"]),
        ("loss.temperature=warm", ["loss.temperature is 'warm': must be 'minimized', 'fixed' or 'learned'"]),
        ("loss.temperature=lerned", ["'minimized', 'fixed' or 'learned'; did you mean 'learned'?"]),
        ("loss.initial_temperature=0.0", ["loss.initial_temperature is 0.0: must be a number of more than 0"]),
        ("loss.initial_temperature=inf", ["loss.initial_temperature is inf: must be a finite number of more than 0"]),
        ("loss.temperature_step=-0.1", ["loss.temperature_step is -0.1: must be a number of at least 0"]),
        ("loss.temperature_step=fast", ["loss.temperature_step is 'fast': must be a number of at least 0"]),
        ("loss.layers=3", ["loss.layers is 3: must be a list, each entry text"]),
        ("training.precision=16-mixed", ["training.precision is '16-mixed'", "cuda"]),
        ("detector.alpha=1.0", ["detector.alpha is 1.0: must be a number of more than 0 and less than 1"]),
        ("detector.metric=manhattan", ["detector.metric is 'manhattan': must be 'cosine' or 'squared_euclidean'"]),
        ("detector.metric=3", ["detector.metric is 3: must be 'cosine' or 'squared_euclidean', one for all"]),
        (
            'detector.metric={conv1="l1", dense="cosine"}',
            ["'conv1': 'l1'", "'squared_euclidean', one for all layers or one for each"],
        ),
        ('detector.metric={conv1="cosine"}', ["detector.metric is {'conv1': 'cosine'}", "for 'dense'"]),
        ('detector.metric={conv1="cosine", dense="cosine", fc="cosine"}', ["['fc'] not among the hidden layers"]),
        ("detector.metric={}", ["detector.metric is {}: must be 'cosine'"]),
        ("detector.layers=[]", ["detector.layers is []", "at least one"]),
        ('detector.layers=["conv3"]', ["detector.layers is ['conv3']", "('conv1', 'conv2', 'dense')"]),
        ('detector.layers=["conv1", "conv1"]', ["detector.layers", "must not repeat"]),
        ('loss.layers=["logits"]', ["loss.layers is ['logits']", "('conv1', 'conv2', 'dense')"]),
        ("loss.weight={conv2=-1.0}", ["loss.weight is {'conv2': -1.0}", "loss.layers = ['conv1']"]),
        ("loss.weight=strong", ["loss.weight is 'strong'", "finite number"]),
        ("loss.weight=inf", ["loss.weight is inf", "finite number"]),
        ("model.hidden=[3]", ["model.hidden is [3]", "kind = 'mlp'"]),
        ("model.channels=[4, 0]", ["model.channels[1] is 0: must be a whole number of at least 1"]),
        ("model.dropout=1", ["model.dropout is 1: must be a number of at least 0 and less than 1"]),
        ("detector.nonconformity=joint", ["detector.joint_parts is not set: ", "at least one part"]),
        ("data.outliers.letters=", ["data.outliers is {'letters': ''}: must name a file or a folder for each set"]),
        ("data.outliers=3", ["data.outliers is 3: must be a table, each value text"]),
        ("data.source=web", ["data.source is 'web'", "'digits', 'npz', 'folder'"]),
        ("data.source=npz", ["data.test_rows is 50", "its own x_test"]),
        ("data.test_rows=0", ["data.test_rows is 0", "at least 1"]),
        ("data.path=x.npz", ["data.path is 'x.npz'", "npz"]),
        ("data.known_classes=[1, 1]", ["data.known_classes is [1, 1]", "must not repeat"]),
        ("data.known_classes=[1]", ["data.known_classes is [1]", "at least 2"]),
        ("seed=-1", ["seed is -1: must be a whole number of at least 0 and less than 4294967296"]),
        ("name=Tiny Recipe", ["name is 'Tiny Recipe': must be 1 to 63 lower-case letters, digits, '_' or '-'"]),
        ("name=_tiny", ["name is '_tiny'", "the first a letter or a digit"]),
        ("name=-tiny", ["name is '-tiny'", "the first a letter or a digit"]),
        ("data.calibration_rows=18", ["data.calibration_rows is 18", "at least 19", "alpha = 0.05"]),
        ("detector.alpha=0.001", ["data.calibration_rows is 100", "at least 999", "or raise detector.alpha"]),
        ("detector.alpha=1e-320", ["data.calibration_rows is 100", "or raise detector.alpha"]),
    ],
)
def test_a_refusal_names_file_key_value_and_what_is_allowed(recipe_file, override, words):
    """One message is enough to mend the recipe."""
    with pytest.raises(RecipeError) as refusal:
        load_recipe(recipe_file, [override])

    message = str(refusal.value)
    assert [word for word in [str(recipe_file), *words] if word not in message] == []


@pytest.mark.parametrize("alpha", [0.9, 0.5, 0.3, 0.1, 0.05, 0.01, 1e-9])
@pytest.mark.parametrize("form", ["density", "joint"])
def test_the_rows_that_alpha_needs_are_those_that_building_needs(alpha, form):
    """One row fewer leaves too few for a p-value of alpha, or for the scale of the joint form's parts."""

    def enough(rows):
        references = round(rows * REFERENCE_SHARE) if form == "joint" else 0
        return smallest_p_value(rows - references) <= alpha and (form != "joint" or references >= 2)

    rows = rows_for_alpha(alpha, form)

    assert [enough(n) for n in (rows - 1, rows)] == [False, True] or (rows == 1 and enough(1))


def test_the_joint_form_needs_rows_for_its_scale_too(recipe_file):
    """Refused when the recipe is read: training would be in vain."""
    joint = ["detector.nonconformity=joint", 'detector.joint_parts=["density", "energy"]']

    with pytest.raises(RecipeError, match=r"calibration_rows is 36: must be at least 37, .* half of the rows"):
        load_recipe(recipe_file, [*joint, "data.calibration_rows=36"])
    assert load_recipe(recipe_file, [*joint, "data.calibration_rows=37"]).data.calibration_rows == 37


def test_all_faults_are_told_at_once(recipe_file):
    """One line per fault, so that mending takes one round."""
    with pytest.raises(RecipeError) as refusal:
        load_recipe(recipe_file, ["training.epochs=0", "detector.alpha=2.0"])

    assert len(str(refusal.value).splitlines()) == 2


def test_a_recipe_that_ships_with_softkin_is_called_what_it_was_called_by():
    """Where it lies in the installed package says nothing to whoever typed its name."""
    with pytest.raises(RecipeError) as refusal:
        load_recipe("digits", ["training.epochs=0"])

    assert str(refusal.value) == "digits with --set: training.epochs is 0: must be a whole number of at least 1"


def test_a_missing_key_is_named(recipe_file):
    """Keys without a default must be there."""
    recipe_file.write_text(RECIPE.replace("bank_rows = 100", ""))

    with pytest.raises(
        RecipeError,
        match=r"tiny\.toml: detector\.bank_rows is missing; it has no default: set it to a whole number of at least 1$",
    ):
        load_recipe(recipe_file)


def test_a_command_leaves_the_keys_of_a_recipe_as_they_are(recipe_file, tmp_path, capsys):
    """Some options of another command have their names."""
    assert main(["train", str(recipe_file), "--out", str(tmp_path / "o"), "--set", "detector.joint_part=3"]) == 1

    assert (
        "did you mean 'joint_parts'? allowed keys: layers, metric, max_dim, max_side, nonconformity, joint_parts, alpha"
        in (capsys.readouterr().err)
    )


def test_a_missing_section_is_named(recipe_file):
    """And how it is added."""
    recipe_file.write_text(RECIPE.partition("[training]")[0] + RECIPE[RECIPE.index("[detector]") :])

    with pytest.raises(RecipeError, match=r"tiny\.toml: training is missing; .*: add the section \[training\]$"):
        load_recipe(recipe_file)


def test_no_refusal_is_in_the_words_of_the_library_that_checks(recipe_file):
    """Of every key, whatever is written there: a word, a number out of range, a fraction, nothing of the kind."""
    refusals = []
    for section, keys in Recipe.model_json_schema()["$defs"].items():
        for key in keys["properties"]:
            for value in ("-1e9", "[[1]]", "true", "{a = {}}", "'?'", "nan"):
                try:
                    load_recipe(recipe_file, [f"{section.removesuffix('Config').lower()}.{key}={value}"])
                except RecipeError as e:
                    refusals.append(str(e))

    assert len(refusals) > 100
    assert [r for r in refusals if "Input" in r or "String" in r or "valid" in r] == []


@pytest.mark.parametrize("override", ["training.epochs", "=3", "training..epochs=3", "name.x=3"])
def test_a_malformed_override_is_refused(recipe_file, override):
    """It must read section.key=value, and lead through sections."""
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(recipe_file, [override])


def test_an_override_cannot_smuggle_in_a_second_key(recipe_file):
    """A line break in a value does not start another line of TOML."""
    with pytest.raises(RecipeError, match=r"seed is '3\\nname = .*: must be a whole number"):
        load_recipe(recipe_file, ['seed=3\nname = "other"'])


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_recipe_may_be_written_as_other_systems_write_text(recipe_file, ends):
    """With a mark at the beginning, which TOML itself does not know, and other ends of lines."""
    before, text = load_recipe(recipe_file), recipe_file.read_text(encoding="utf-8")

    recipe_file.write_text(text, encoding="utf-8-sig", newline=ends)

    assert load_recipe(recipe_file) == before


@pytest.mark.parametrize("make", [lambda p: "no_such_recipe", lambda p: p / "missing.toml"], ids=["name", "path"])
def test_a_recipe_that_is_not_there_lists_those_that_are(tmp_path, make):
    """The remedy stands in the message."""
    with pytest.raises(RecipeError, match="digits"):
        load_recipe(make(tmp_path))


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe"], ids=["broken TOML", "not text"])
def test_a_file_that_is_not_toml_is_refused_by_name(recipe_file, content):
    """Whatever stands in it, the file is named and the error is ours."""
    recipe_file.write_bytes(content)

    with pytest.raises(RecipeError, match=r"tiny\.toml"):
        load_recipe(recipe_file)


@pytest.mark.parametrize("text", ["2", "2026-11-26", "true", "1e3"])
def test_a_key_of_text_takes_text_that_reads_like_something_else(text):
    """No quotes within quotes for a version."""
    assert load_recipe("digits", [f"version={text}"]).version == text


def test_a_key_of_a_list_says_how_a_list_is_written():
    """With the value that was given."""
    with pytest.raises(RecipeError, match=r"loss\.layers is 'conv1'.*write loss\.layers = \[\"conv1\"\]"):
        load_recipe("digits", ["loss.layers=conv1"])


def test_a_precision_that_there_is_not_is_refused_in_one_line():
    """With the value, and all that there are."""
    with pytest.raises(RecipeError) as e:
        load_recipe("digits", ["detector.precision=int4"])
    assert str(e.value).count("\n") == 0
    assert "'int4'" in str(e.value)
    assert "'auto'" in str(e.value)
