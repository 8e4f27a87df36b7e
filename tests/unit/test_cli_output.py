"""Where the command line's output goes: readers that leave, full disks, terminals that are narrow or not UTF-8."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest

from softkin import cli, display, score_display
from softkin.descriptions import DriftInfo
from softkin.drift import DriftReport
from softkin.errors import DataError
from softkin.scores import Parts
from standin import StandIn, manifest

COMMAND = [sys.executable, "-m", "softkin.cli"]


@pytest.fixture
def bundle(tmp_path):
    """Enough of a bundle for `inspect`, which reads the manifest alone."""
    m = dataclasses.replace(manifest(), classes=("башмак", "sandal", "sneaker"))
    (tmp_path / "manifest.json").write_text(m.to_json())
    return str(tmp_path)


@pytest.fixture
def no_reader():
    """The end of a pipe that nobody reads from."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("arguments", [["--json"], []], ids=["json", "table"])
def test_a_reader_who_leaves_ends_the_command_without_a_word(bundle, no_reader, arguments):
    """`softkin ... | head`: no traceback, neither at once nor when the interpreter ends."""
    done = subprocess.run(
        [*COMMAND, "inspect", bundle, *arguments], stdout=no_reader, stderr=subprocess.PIPE, timeout=60, check=False
    )

    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("arguments", [["--json"], []], ids=["json", "table"])
def test_a_full_disk_is_an_error_in_a_line(bundle, arguments):
    """Output that is cut short must not pass for a success."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "inspect", bundle, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )

    assert done.returncode == 1
    assert done.stderr == b"softkin: error: cannot write the output (No space left on device)\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_cannot_show_is_replaced(bundle, monkeypatch, encoding):
    """A class may have any name, and not every locale is UTF-8."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))

    assert cli.main(["inspect", bundle]) == 0
    assert b"3: ??????, sandal, sneaker" in out.getvalue()


def test_a_drift_report_has_digits_for_bars_where_there_is_ascii_alone(monkeypatch):
    """The recent p-values stay legible."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii", write_through=True))
    report = DriftReport(
        rows=1,
        level=0.01,
        log10_martingale=0.0,
        max_log10_martingale=0.0,
        alarm_row=0,
        cusum=0.0,
        window_rows=1,
        flag_rate=0.0,
        alpha=0.05,
        histogram=np.array([8, 4, 0, 1, 2] * 4),
    )

    display.print_drift(DriftInfo(detector="d", version="1", digest="x", report=report), as_json=False)

    assert b"84 1284 1284 1284 12" in out.getvalue()


def test_a_narrow_terminal_cuts_no_name_short(tmp_path, monkeypatch, capsys):
    """A layer's name is what `--layers` and the evidence go by."""
    m = manifest()
    layers = [dataclasses.replace(x, name="backbone_layer4_block1_relu_output_" + x.name) for x in m.layers]
    (tmp_path / "manifest.json").write_text(dataclasses.replace(m, layers=tuple(layers)).to_json())
    monkeypatch.setenv("COLUMNS", "60")

    cli.main(["inspect", str(tmp_path)])

    cells = [line.split("│")[1].strip() for line in capsys.readouterr().out.split("┡")[1].splitlines()[1:-1]]
    assert "".join(cells) == "".join(x.name for x in layers)


def test_of_many_classes_the_first_hundred_are_shown(tmp_path, capsys):
    """The facts below them are what most readers look for."""
    names = tuple(f"c{i}" for i in range(1000))
    m = dataclasses.replace(manifest(), classes=names, predicted_class_rows=(99, *[0] * 999))
    (tmp_path / "manifest.json").write_text(m.to_json())

    cli.main(["inspect", str(tmp_path)])

    out = "".join(line.strip("│ ") for line in capsys.readouterr().out.splitlines())
    assert "c99, ... (all: --json)" in out
    assert "c100" not in out


def npy(array):
    """An array as the bytes of an .npy file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def damaged():
    """A compressed .npz whose data do not unpack."""
    out = io.BytesIO()
    np.savez_compressed(out, x_test=np.arange(1000) ** 2)
    raw = bytearray(out.getvalue())
    raw[100:140] = bytes(b ^ 0xFF for b in raw[100:140])
    return bytes(raw)


def encrypted():
    """An .npz file whose array asks for a password."""
    raw = bytearray(whole())
    for flags in (6, raw.index(b"PK\x01\x02") + 8):
        raw[flags] |= 1
    return bytes(raw)


def cut_short():
    """An .npz file whose array is longer than the file, as its directory has it."""
    raw = bytearray(whole())
    sizes = raw.index(b"PK\x01\x02") + 20
    raw[sizes : sizes + 8] = struct.pack("<II", 10_000, 10_000)
    return bytes(raw).replace(b"(10,)", b"(90,)")


def whole():
    """An .npz file as it should be."""
    out = io.BytesIO()
    np.savez(out, x_test=np.arange(10))
    return out.getvalue()


def archive(name, content):
    """A zip file with one member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(name, content)
    return out.getvalue()


def with_header(text):
    """An .npz file whose array has this header, in the oldest version of the format, and nothing else."""
    header = text.ljust(117).encode() + b"\n"
    return archive("x_test.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.zeros(3)), "not an .npz file"),
        (b"1,2,3\n", "not an .npz file"),
        (b"", "not an .npz file"),
        (damaged(), "not an .npz file"),
        (encrypted(), "not an .npz file of plain arrays .*password required"),
        # Newer Pythons compare the sizes before they read.
        (cut_short(), r"not an .npz file of plain arrays \((it ends too soon|Overlapped entries.*)\)"),
        (with_header("{'descr': '<f8', 'shape': (9"), "not an .npz file of plain arrays"),
        (archive("x_test", "text"), "'x_test' is no array"),
        (archive("x_test.npy", "text"), "'x_test' is no array"),
    ],
    ids=[
        "npy",
        "csv",
        "empty",
        "damaged",
        "encrypted",
        "cut short",
        "half a header",
        "a member that is no array",
        "a member that only looks like one",
    ],
)
def test_a_file_that_is_no_npz_is_refused_with_the_remedy(tmp_path, content, message):
    """Whatever it is; and nobody is told how to load a pickle."""
    path = tmp_path / "x.npz"
    path.write_bytes(content)

    with pytest.raises(DataError, match=message) as e:
        score_display.read_array(str(path), "x_test")

    assert "pickle" not in str(e.value)
    assert str(e.value).endswith("; write one with numpy.savez(FILE, x_test=ROWS), or choose another array with --key")


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(3, 2), np.asfortranarray(np.eye(2, dtype="u1"))])
def test_an_npy_file_is_one_array(tmp_path, array):
    """So what `numpy.save` wrote needs no name."""
    np.save(tmp_path / "x.npy", array)

    read = score_display.read_array(str(tmp_path / "x.npy"), None)

    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (whole(), r"not an .npy file of a plain array \(the magic string is not correct"),
        (b"", "not an .npy file of a plain array"),
        (npy(np.zeros(9))[:-1], "not an .npy file of a plain array"),
        (npy(np.array([{}], object)), "not an .npy file of a plain array"),
    ],
    ids=["npz", "empty", "cut short", "pickled"],
)
def test_a_file_that_is_no_npy_is_refused_with_the_remedy(tmp_path, content, message):
    """As an .npz file is."""
    path = tmp_path / "x.npy"
    path.write_bytes(content)

    with pytest.raises(DataError, match=message) as e:
        score_display.read_array(str(path), None)

    assert str(e.value).endswith("; write one with numpy.save(FILE, ROWS)")


def test_what_an_npy_file_cannot_be_asked_for_is_refused(tmp_path):
    """A name, and rows of a single value."""
    np.save(tmp_path / "x.npy", 1.0)

    with pytest.raises(DataError, match=r"x\.npy: an \.npy file has one array, and no --key 'a'; leave --key out$"):
        score_display.read_array(str(tmp_path / "x.npy"), "a")
    with pytest.raises(DataError, match=r"x\.npy: its array is a single value; the first axis must be rows$"):
        score_display.read_array(str(tmp_path / "x.npy"), None)


def test_an_array_larger_than_memory_is_refused_with_words(tmp_path):
    """And with another remedy than to write the file anew."""
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,)}"
    (tmp_path / "x.npz").write_bytes(with_header(header))

    with pytest.raises(DataError, match=r"x\.npz: is too large for the memory here \(Unable to .* TiB .*take a part"):
        score_display.read_array(str(tmp_path / "x.npz"), "x_test")


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    """And what to do; a folder, which other commands take, is told what a file should be."""
    reasons = {
        tmp_path / "none.npz": "cannot be read (No such file or directory); check path and rights",
        tmp_path: "is a folder, not an .npz file of plain arrays; write one with numpy.savez(FILE, x_test=ROWS), or "
        "choose another array with --key",
    }
    for path, reason in reasons.items():
        with pytest.raises(DataError) as e:
            score_display.read_array(str(path), "x_test")
        assert str(e.value) == f"{path}: {reason}"


def test_an_array_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    """Also where there is none."""
    np.savez(tmp_path / "some.npz", a=[1], b=[2])
    np.savez(tmp_path / "empty.npz")

    for name, there in (("some", "a, b"), ("empty", "none")):
        with pytest.raises(DataError, match=f"has no array 'x_test'; it has: {there}; choose with --key"):
            score_display.read_array(str(tmp_path / f"{name}.npz"), "x_test")


def test_names_of_arrays_do_not_write_to_the_terminal(tmp_path):
    """The file is somebody else's: a name in it may have a line break, or what a terminal obeys."""
    np.savez(tmp_path / "odd.npz", **{"a\n\x1b[31m": [1]})

    with pytest.raises(DataError) as e:
        score_display.read_array(str(tmp_path / "odd.npz"), None)
    assert r"it has: a\n\x1b[31m; choose with --key" in str(e.value)


def test_the_damaged_file_is_one_that_zlib_refuses():
    """Otherwise another error would be tested, which zipfile raises."""
    with zipfile.ZipFile(io.BytesIO(damaged())) as file, pytest.raises(zlib.error):
        file.read("x_test.npy")


def without_neighbors():
    """An answer for two rows, of which the second overflows."""
    scores = StandIn().score(np.zeros((2, 2, 3), np.float32), num_neighbors=2)
    n = scores.neighbors
    for array, nothing in ((n.ids, -1), (n.labels, -1), (n.distances, np.inf), (n.shares, 0)):
        array[1] = nothing
    return scores


def test_a_row_without_neighbors_has_none_in_json(capsys):
    """No made-up class, no null for a distance."""
    score_display.print_json(without_neighbors(), ["a", "b", "c"])

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(found) for found in lines[0]["neighbors"].values()] == [2, 2]
    assert list(lines[1]["neighbors"].values()) == [[], []]


def test_a_row_without_neighbors_has_none_in_the_table(capsys):
    """In a word."""
    score_display.print_table(without_neighbors(), ["a", "b", "c"])

    assert [line.split("│")[-2].strip() == "none" for line in capsys.readouterr().out.splitlines() if "│" in line] == [
        False,
        True,
    ]


def two_rows_of_a_joint_score():
    """The first an outlier that `class_part` finds strangest, the second an inlier."""
    scores = StandIn().score(np.zeros((2, 2, 3), np.float32), num_neighbors=1)
    parts = Parts(names=("part", "class_part"), values=np.array([[2.0, 5.0], [0.5, np.inf]]))
    return dataclasses.replace(scores, parts=parts, is_outlier=np.array([True, False]))


def test_what_a_score_is_made_of_stands_in_json(capsys):
    """By name; what is infinite is no number there."""
    score_display.print_json(two_rows_of_a_joint_score(), ["a", "b", "c"])

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("parts") for line in lines] == [
        {"part": 2.0, "class_part": 5.0},
        {"part": 0.5, "class_part": None},
        None,
    ]


def test_the_table_says_in_which_part_an_outlier_is_strangest(capsys):
    """An inlier is strange in none."""
    score_display.print_table(two_rows_of_a_joint_score(), ["a", "b", "c"])

    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert [row[5] for row in rows] == ["class part", ""]
    assert "strangest" in out


def test_a_long_table_says_the_same_in_plain_columns(capsys, monkeypatch):
    """Of very many rows the drawing of a table takes longer than their scores."""
    scores = StandIn().score(np.arange(18, dtype=np.float32).reshape(3, 2, 3), num_neighbors=2)
    score_display.print_table(scores, ["a", "[b]", "c"])
    drawn = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(score_display, "LONGEST_TABLE", 2)
    score_display.print_table(scores, ["a", "[b]", "c"])
    plain = capsys.readouterr().out.splitlines()

    words = [[cell.split() for cell in line.split("│")[1:-1]] for line in drawn if "│" in line]
    assert [line.split() for line in plain[1:-1]] == [[w for cell in row for w in cell] for row in words]
    assert len({line.index("inlier" if "inlier" in line else "outlier") for line in plain[1:-1]}) == 1
    assert plain[0].split()[:4] == ["row", "verdict", "predicted", "class"]
    assert plain[-1] == drawn[-1]


def test_names_are_shown_letter_by_letter(capsys, monkeypatch):
    """Classes and layers may be called what a terminal library takes for a picture, or for a colour."""
    monkeypatch.setenv("COLUMNS", "160")
    scores = StandIn().score(np.zeros((1, 2, 3), np.float32), num_neighbors=1)
    n = dataclasses.replace(scores.neighbors, layers=("conv", "[red]dense\x1b[2J\n"))

    score_display.print_table(dataclasses.replace(scores, neighbors=n), [":dog:", "[bold]", "c"])

    out = capsys.readouterr().out
    assert r"nearest training rows ([red]dense\x1b[2J\n)" in out
    assert out.count(":dog:") == 2
