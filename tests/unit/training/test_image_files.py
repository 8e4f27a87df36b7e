"""Images below a folder, and what is in each file: what is found, and what is refused."""

from __future__ import annotations

import io
import os
import struct

import datasets
import numpy as np
import pytest
from PIL import Image

from softkin.errors import DataError
from softkin_training.data_config import DataConfig
from softkin_training.image_folder import READ_AT_ONCE, images_below, read_folder, read_unlabelled
from softkin_training.image_reader import ImageReader

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def files(root, *names):
    """Empty files below a folder, whose names are all that counts."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root):
    """Their names, from the folder on."""
    return [str(path.relative_to(root)) for path in images_below(root)]


@pytest.mark.parametrize("link", ["a", "z", "m/a", "m/deep/z"])
def test_a_folder_that_a_link_leads_to_is_read_once_where_it_stands(tmp_path, link):
    """Its images came twice where the disk listed the folder before the link, else once, by the name of the link."""
    files(tmp_path, "m/deep/1.png", "m/deep/2.png", "m/deep/.hidden/3.png", "0.png")
    (tmp_path / link).symlink_to(tmp_path / "m" / "deep")

    assert found(tmp_path) == ["0.png", "m/deep/1.png", "m/deep/2.png"]


def test_a_folder_elsewhere_is_read_at_the_first_link_that_leads_there(tmp_path):
    """Through links that it holds itself, too."""
    files(tmp_path, "out/1.png", "far/2.png", "in/3.png")
    (tmp_path / "out" / "on").symlink_to("../far")
    for link in ("b", "a"):
        (tmp_path / "in" / link).symlink_to("../out")

    assert found(tmp_path / "in") == ["3.png", "a/1.png", "a/on/2.png"]


@pytest.mark.parametrize("links", [("a/up", ".."), ("a/self", "."), ("a/to_b", "../b")])
def test_links_that_lead_round_and_round_end(tmp_path, links):
    """Into the folder itself, one above, or one that links back."""
    files(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / links[0]).symlink_to(links[1])
    (tmp_path / "b" / "to_a").symlink_to("../a")

    assert len(images_below(tmp_path)) == len({path.resolve() for path in images_below(tmp_path)}) == 2


def test_only_what_is_called_like_an_image_and_is_not_hidden_is_found(tmp_path):
    """Sorted by path, whatever the case of the suffix."""
    files(tmp_path, "b.JPG", "a/c.Png", "a.tiff", "x.txt", "png", ".png", ".d.png", ".h/1.png", "b.png.bak")
    (tmp_path / "folder.png").mkdir()

    assert found(tmp_path) == ["a/c.Png", "a.tiff", "b.JPG"]


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"])
def test_images_of_every_suffix_that_errors_list_are_found_and_read(tmp_path, suffix):
    """As Pillow writes them; of any other there would be no word."""
    image = Image.new("L" if suffix == "pgm" else "RGB", (5, 3), 200 if suffix == "pgm" else (200, 200, 200))
    image.save(tmp_path / f"x.{suffix}")

    x = read_unlabelled(tmp_path, DataConfig(source="folder", path=str(tmp_path), calibration_rows=1))

    assert x.shape == (1, 3, 5, 3)
    np.testing.assert_allclose(x, 200, atol=2)  # some lose a little


def test_a_folder_without_images_is_refused_with_the_suffixes_that_count(tmp_path):
    """All of them, in order."""
    files(tmp_path, "x.heic", "y.txt")

    with pytest.raises(DataError) as e:
        read_unlabelled(tmp_path, DataConfig(source="folder", path=str(tmp_path), calibration_rows=1))

    assert str(e.value) == (
        f"{tmp_path}: holds no images; they must end in .bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp"
    )


def test_a_folder_that_cannot_be_read_is_refused_not_left_out(tmp_path):
    """Here one whose path is longer than any may be: its images would silently be missing."""
    files(tmp_path, "1.png")
    above = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=above)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)

    with pytest.raises(DataError, match=r"d/d+: cannot be read as a folder \(File name too long\)$"):
        images_below(tmp_path)


def painted(root, *names, size=(4, 4)):
    """Images of one color below a folder, each of its own."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, i).save(root / name)
    return root


def source(root, **settings):
    """What `[data]` says of a folder."""
    return read_folder(DataConfig(**({"source": "folder", "path": str(root), "calibration_rows": 1} | settings)))


def test_classes_are_folders_that_are_not_hidden(tmp_path):
    """Neither a file beside them nor what other programs keep there."""
    painted(tmp_path, "b/1.png", "a/2.png", "stray.png", ".git/3.png")

    found = source(tmp_path, test_rows=1)

    assert found.class_names == ("a", "b")
    assert found.train.y.tolist() == [0, 1]


@pytest.mark.parametrize("names", [("train", "plane"), ("test", "control"), ("train", "training", "plane")])
def test_a_class_may_be_called_like_a_split_beside_others(tmp_path, names):
    """Trains are vehicles, too."""
    painted(tmp_path, *(f"{name}/1.png" for name in names))

    assert source(tmp_path, test_rows=1).class_names == tuple(sorted(names))


@pytest.mark.parametrize("names", ["train valid", "training testing", "dev eval", "Train Val", "test validation"])
def test_splits_alone_are_no_classes(tmp_path, names):
    """Whatever they are called, a classifier of them would tell nothing."""
    painted(tmp_path, *(f"{split}/{name}/1.png" for split in names.split() for name in "ab"))

    with pytest.raises(DataError, match="which are splits and no classes; call them train and test, or name one"):
        source(tmp_path, test_rows=1)


def test_a_class_that_the_test_folder_spells_otherwise_is_told_so(tmp_path):
    """As archives of a Mac do, whose names look the same."""
    painted(tmp_path, "train/caf\u00e9/1.png", "train/tea/2.png", "test/cafe\u0301/3.png", "test/tea/4.png")

    with pytest.raises(
        DataError, match=r"classes of train: .*; 'cafe\\u0301' is 'caf\\xe9' in another spelling of Unicode"
    ):
        source(tmp_path)


@pytest.mark.parametrize("path", ["a/1.png", "a/missing", "x" * 300], ids=["a file", "nothing", "too long a name"])
def test_what_is_no_folder_of_classes_is_refused_as_such(tmp_path, path):
    """A file is told from a folder that is empty, and a path that no disk takes from a fault of ours."""
    painted(tmp_path, "a/1.png")

    with pytest.raises(DataError, match=rf"{path}: is no folder; data\.path names one that holds"):
        source(tmp_path / path, test_rows=1)


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_the_last_image_is_read_whatever_their_number(tmp_path, more):
    """As many are decoded at once as there are, or one less or more."""
    n = READ_AT_ONCE + more
    painted(tmp_path, *(f"a/{i:03}.png" for i in range(n - 1)), "b/x.png")

    found = source(tmp_path, test_rows=1, image_mode="L")

    assert found.train.read(np.arange(n))[:, 0, 0].tolist() == list(range(n))
    assert found.train.y.tolist() == [0] * (n - 1) + [1]


def test_images_that_were_read_before_are_read_again_in_another_size_or_mode(tmp_path):
    """They are kept decoded: those of other settings are others."""
    painted(tmp_path, "a/1.png", "b/2.png")

    assert source(tmp_path, test_rows=1).train.row_shape == (4, 4, 3)
    assert source(tmp_path, test_rows=1, image_size=[2, 5]).train.row_shape == (2, 5, 3)
    assert source(tmp_path, test_rows=1, image_size=[2, 5], image_mode="L").train.row_shape == (2, 5)


def test_an_outlier_that_cannot_be_read_is_named_by_its_path(tmp_path):
    """Many may be called alike."""
    files(tmp_path, "far/away/1.png")

    with pytest.raises(DataError, match=rf"^{tmp_path}/far/away/1\.png: cannot be read as an image"):
        read_unlabelled(tmp_path, DataConfig(source="folder", path=str(tmp_path), calibration_rows=1))


def encoded(image, kind):
    """An image's file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def a_tiff_whose_strip_begins_at_a_fraction():
    """A file that Pillow opens, and then fails on as on a fault of its own."""
    whole = bytearray(encoded(Image.new("L", (4, 4)), "tiff"))
    order = "<" if whole[:2] == b"II" else ">"
    start = struct.unpack_from(f"{order}I", whole, 4)[0]
    for i in range(struct.unpack_from(f"{order}H", whole, start)[0]):
        tag = start + 2 + 12 * i
        if struct.unpack_from(f"{order}H", whole, tag)[0] == 273:  # StripOffsets
            struct.pack_into(f"{order}HII", whole, tag + 2, 5, 1, 8)  # one RATIONAL, at byte 8
    return bytes(whole)


DAMAGED = {
    "nothing": b"",
    "another kind of file": b"<svg></svg>",
    "cut short": encoded(Image.new("L", (40, 40)), "png")[:50],
    "a strip at a fraction of a byte": a_tiff_whose_strip_begins_at_a_fraction(),
}


@pytest.mark.parametrize("source", ["bytes", "file"])
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_whatever_is_wrong_with_a_file_it_is_refused_by_name(tmp_path, content, source):
    """Pillow's decoders raise errors of many kinds; none says where in memory something lies."""
    path = tmp_path / "x.tif"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"^x: cannot be read as an image \(.*\); replace it, or take it away$") as e:
        ImageReader("RGB", []).read(content if source == "bytes" else path, "x")

    assert " at 0x" not in str(e.value)


def test_an_image_of_unknown_range_inside_a_table_is_refused_as_such():
    """It can be read; which value is white is what nobody knows."""
    image = encoded(Image.fromarray(np.ones((2, 2), np.float32)), "tiff")

    with pytest.raises(DataError, match=r"^row 7: its pixels are floating point, and no file says"):
        ImageReader("L", []).read(image, "row 7")


def grey(*rows):
    """An image's file, from its pixels."""
    return encoded(Image.fromarray(np.array(rows, np.uint8)), "png")


@pytest.mark.parametrize("turned", [[[7], [7]], [[7, 7, 7]], [[7], [7], [7]]])
def test_images_of_one_size_are_as_high_and_as_wide_as_the_first(turned):
    """Height comes first, in what is wrong as in its remedy."""
    reader = ImageReader("L", [])
    np.testing.assert_array_equal(reader.read(grey([1, 2]), "a"), [[1, 2]])
    np.testing.assert_array_equal(reader.read(grey([3, 4]), "b"), [[3, 4]])
    height, width = np.shape(turned)

    with pytest.raises(DataError) as e:
        reader.read(grey(*turned), "c")

    assert str(e.value) == (
        f"c is {height} x {width} pixels, a is 1 x 2; make all images of one size, or say data.image_size = [1, 2], "
        "which resizes them"
    )


def test_images_are_resized_bilinearly():
    """To height and width as asked; one of that size already stays as it is."""
    reader = ImageReader("L", [1, 4])

    assert reader.read(grey([0, 200]), "a").tolist() == [[0, 50, 150, 200]]
    assert reader.read(grey([0], [200], [0], [200]), "b").shape == (1, 4)
    assert reader.read(grey([9, 1, 8, 2]), "c").tolist() == [[9, 1, 8, 2]]


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_of_sixteen_bits_the_upper_eight_are_kept_in_either_order_of_bytes(mode):
    """As scanners and cameras write them to TIFF."""
    x = np.array([[0x00FF, 0x0100, 0x1234, 0xFFFF]])
    pixels = x.astype(">u2" if mode == "I;16B" else "<u2").tobytes()

    found = ImageReader("L", []).read(encoded(Image.frombytes(mode, (4, 1), pixels), "tiff"), "a")

    assert found.tolist() == [[0x00, 0x01, 0x12, 0xFF]]


def test_of_a_pgm_of_sixteen_bits_the_upper_eight_are_kept():
    """Pillow opens it as 32 bits, of which nobody could say which value is white."""
    pixels = np.array([0x00FF, 0x0100, 0x1234, 0xFFFF], ">u2").tobytes()

    assert ImageReader("L", []).read(b"P5 4 1 65535\n" + pixels, "a").tolist() == [[0x00, 0x01, 0x12, 0xFF]]


@pytest.mark.parametrize("kind", ["png", "gif"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_transparency_is_dropped_without_a_word(kind, mode):
    """Of a palette, too, for which Pillow has one; the colors are those behind it."""
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 200, 200])
    image.putdata([0, 1])
    file = io.BytesIO()
    image.save(file, kind, transparency=bytes([0, 100]) if kind == "png" else 1)

    found = ImageReader(mode, []).read(file.getvalue(), "a")

    assert found.reshape(2, -1)[:, 0].tolist() == [0, 200]
