"""Denormal numbers count as zero while a session runs, on all of its threads, and for nobody else."""

from __future__ import annotations

import ctypes
import platform
import sys
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper

from softkin import denormals
from softkin.denormals import can_flush, denormals_as_zero
from softkin.device import Target
from softkin.session import run_session, start_session

DENORMAL = np.full(1 << 18, 1e-40, np.float32)

# Not what the code finds out: were it wrong everywhere, no test would run.
X86_64_GLIBC = (sys.platform, platform.machine(), platform.libc_ver()[0]) == ("linux", "x86_64", "glibc")
pytestmark = pytest.mark.skipif(not X86_64_GLIBC, reason="denormal numbers stay on other processors and C libraries")


def survives():
    """Whether denormal numbers are what they are to the calling thread."""
    return bool((DENORMAL + DENORMAL).all())


def read_and_written():
    """Products with a denormal number, and such that would be one. To be looked at where all numbers can be read."""
    large, small = np.full(64, 1e30, np.float32), np.full(64, 1e-20, np.float32)
    return np.concatenate([DENORMAL[:64] * large, small * small])


def in_thread(function):
    """What it returns in a thread of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def doubling(threads):
    """A session that adds its input to itself."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubling",
        [value("x", TensorProto.FLOAT, ["batch"])],
        [value("y", TensorProto.FLOAT, ["batch"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return start_session(model, Target("cpu"), threads=threads)[0]


def test_they_are_zero_within_and_themselves_again_after_it():
    """Also within one another, and after an error."""

    def failing():
        with denormals_as_zero():
            with denormals_as_zero():
                assert not survives()
            assert not survives()
            raise KeyError

    assert survives()
    with pytest.raises(KeyError):
        failing()
    assert survives()


def test_they_are_zero_where_they_are_read_and_where_they_are_written():
    """One without the other leaves half of them slow."""
    with denormals_as_zero():
        within = read_and_written()

    assert not within.any()
    assert read_and_written().all()


def test_an_interrupt_between_setting_and_computing_sets_the_thread_back(monkeypatch):
    """Else it would flush for good."""
    library = denormals._LIBRARY

    class Interrupted:
        fegetenv, left = library.fegetenv, 1

        def fesetenv(self, environment):
            library.fesetenv(environment)
            if self.left:
                self.left -= 1
                raise KeyboardInterrupt

    monkeypatch.setattr(denormals, "_LIBRARY", Interrupted())
    with pytest.raises(KeyboardInterrupt), denormals_as_zero():
        pass

    assert survives()


@pytest.mark.parametrize(
    ("system", "machine"),
    [("linux", "aarch64"), ("darwin", "x86_64"), ("linux", "x86_64")],
    ids=["processor", "system", "C library"],
)
def test_elsewhere_they_stay_what_they_are(monkeypatch, system, machine):
    """On other processors, on other systems, and where the C library goes by another name."""

    def missing(name):
        raise OSError(name)

    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", system)
        patched.setattr(platform, "machine", lambda: machine)
        if (system, machine) == ("linux", "x86_64"):
            patched.setattr(ctypes, "PyDLL", missing)
        library = denormals._c_library()
    monkeypatch.setattr(denormals, "_LIBRARY", library)

    assert not can_flush()
    with denormals_as_zero():
        assert survives()
    (found,) = run_session(doubling(2), ["y"], {"x": DENORMAL}, "cpu")
    assert found.all()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_counts_them_as_zero_and_leaves_its_caller_alone(threads):
    """On every thread that computes; not in that which starts it, in later ones, or in those that call it."""
    session = doubling(threads)
    assert survives()
    assert in_thread(survives)

    def run():
        (found,) = run_session(session, ["y"], {"x": DENORMAL}, "cpu")
        return not found.any() and survives()

    assert all(run() for _ in range(20))
    assert in_thread(run)
