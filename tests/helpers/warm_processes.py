"""Processes of `softkin-train` that start in a moment: forks of one that has imported what training needs.

For tests in which a process is killed, stopped or told things by its environment. Its imports, seven seconds of them,
show nothing there.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import wait

PRELOADED = ["softkin_training.demo", "softkin_training.train", "sklearn.datasets", "matplotlib.pyplot"]
START = "forkserver"
"""How multiprocessing calls it."""
_forks = multiprocessing.get_context(START)
_forks.set_forkserver_preload(PRELOADED)


def warm_spawning(monkeypatch):
    """Let what spawns processes get such forks, which are told as much and inherit no more of the test."""
    original = multiprocessing.get_context
    methods = {"spawn": START}
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: original(methods.get(method, method)))


class WarmProcess:
    """A command in a process and, with its children, a group of its own; killed where the block ends before they do.

    Args:
        arguments: of the command line.
        module: whose `main` reads it.
        environment: variables that it has besides those of the first such process.
        before: called in the process first; of a module.
    """

    def __init__(self, arguments, *, module="softkin_training.__main__", environment=None, before=None):
        self._output, output = _forks.Pipe(duplex=False)
        self._errors, errors = _forks.Pipe(duplex=False)
        arguments = [str(argument) for argument in arguments]
        work = (module, arguments, environment or {}, before, output, errors)
        self._process = _forks.Process(target=_run, args=work)
        self._process.start()
        output.close()
        errors.close()
        self.pid = self._process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(ProcessLookupError):  # as it should be
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()  # which may have no group yet
        self._process.join()
        self._output.close()
        self._errors.close()

    @property
    def status(self):
        """Of its exit, minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def read_until(self, text):
        """What it has printed, when the text is in it."""
        printed = b""
        while text.encode() not in printed:
            some = os.read(self._output.fileno(), 1 << 16)
            assert some, f"it ended early:\n{self.finish(60)}"
            printed += some
        return printed.decode()

    def finish(self, timeout):
        """What it and all its children print from now on, on standard output and on standard error.

        Args:
            timeout: in seconds, from line to line.

        Raises:
            TimeoutError: nothing was printed for as long, or it has not ended by then.
        """
        texts = {self._output: b"", self._errors: b""}
        open_ends = list(texts)
        while open_ends:
            ready = wait(open_ends, timeout)
            if not ready:
                raise TimeoutError(f"neither another line nor the end within {timeout} s: {list(texts.values())}")
            for end in ready:
                some = os.read(end.fileno(), 1 << 16)
                texts[end] += some
                if not some:
                    open_ends.remove(end)
        self._process.join(timeout)
        if self.status is None:
            raise TimeoutError(f"its output is closed, but it runs on after {timeout} s")
        return tuple(text.decode() for text in texts.values())


def _run(module, arguments, environment, before, output, errors):
    os.setsid()
    for end, standard in ((output, 1), (errors, 2)):
        os.dup2(end.fileno(), standard)
        end.close()
    # Those of the process that imported were opened on what pytest puts in their place.
    sys.stdout, sys.stderr = (os.fdopen(os.dup(fd), "w", buffering=1) for fd in (1, 2))
    os.environ.update(environment)
    if before is not None:
        before()
    sys.argv = ["softkin-train", *arguments]
    sys.exit(importlib.import_module(module).main())
