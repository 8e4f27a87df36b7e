"""Which paths the admin service loads from: those inside its root, however they are written."""

from __future__ import annotations

import os

import pytest

from softkin.errors import InvalidInputError, PreconditionError


@pytest.mark.parametrize(
    "path",
    ["", "..", "../outside", "v2/../../outside", "{outside}", "link", "deep/link/x", "loop/../../outside", "a\0b"],
)
def test_a_path_that_leaves_the_root_is_refused(admin, root, loading, path):
    """By '..', as an absolute path, or by a link; nothing there is read."""
    outside = root.parent / "outside"
    (root / "link").symlink_to(outside)
    (root / "deep").mkdir()
    (root / "deep" / "link").symlink_to(root.parent)

    with pytest.raises(InvalidInputError) as e:
        admin.load(path.format(outside=outside))

    assert e.value.field == "path"
    assert ("leaves the bundle root" in str(e.value)) is (path not in ("", "a\0b"))
    assert loading.loaded == []


@pytest.mark.parametrize("file", ["manifest.json", "model.onnx", "bank.safetensors"])
def test_a_bundle_with_a_file_that_leads_out_of_the_root_is_refused(admin, root, loading, file):
    """A link inside the bundle must not read what the server may read and the operator may not."""
    (root / "v2" / file).unlink()
    (root / "v2" / file).symlink_to(root.parent / "outside" / file)

    with pytest.raises(InvalidInputError, match="leaves the bundle root"):
        admin.load("v2")

    assert loading.loaded == []


def test_links_inside_the_root_are_followed(admin, root):
    """As deployments use them: `current` points to a version."""
    (root / "current").symlink_to("v3")

    assert admin.load("current").version == "3"
    assert admin.load(str(root / "v2")).version == "2"


@pytest.mark.parametrize(("path", "message"), [("nothing", "cannot be read"), ("loop", "cannot be read")])
def test_what_is_no_bundle_is_a_failed_precondition_with_its_message(admin, root, path, message):
    """Operators are told what callers of scores are not."""
    os.symlink("loop", root / "loop")

    with pytest.raises(PreconditionError, match=message):
        admin.load(path)


def test_a_path_from_where_the_server_stands_is_told_from_one_in_the_root(admin, root, monkeypatch):
    """The shell completes the former, and both would be in the path that cannot be read."""
    monkeypatch.chdir(root.parent)

    with pytest.raises(PreconditionError, match=f"{root}/root/v2/.* a path is relative to the bundle root, {root}$"):
        admin.load("root/v2")

    (root / "empty").mkdir()
    with pytest.raises(PreconditionError, match="cannot be read") as e:
        admin.load("empty")
    assert "bundle root" not in str(e.value)


def test_a_label_alone_is_no_list_of_labels(admin, loading):
    """Text is a sequence too, and every letter of it a fit label."""
    with pytest.raises(InvalidInputError, match=r"^labels: got 'stable'; must be a list of labels$"):
        admin.load("v2", "stable")

    assert loading.loaded == []
