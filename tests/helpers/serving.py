"""A server as a process of its own, whose log is read line by line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from softkin.client import Client
from softkin.v1 import outlier_pb2_grpc as pb_grpc

SCRIPT = Path(__file__).with_name("standin.py")


class Process:
    """The stand-in, served; arguments are those of its command line. Killed after so many seconds, lest a test hang."""

    def __init__(self, *arguments: str, seconds: float = 60, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, str(SCRIPT), *arguments]
        variables = {**os.environ, **(environment or {})}
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables)
        self.log: list[str] = []
        self._watchdog = threading.Timer(seconds, self.popen.kill)
        self._watchdog.start()
        line = self.read_until("event=serving")
        self.port, self.metrics_port = (int(re.search(rf"\b{k}=(\d+)", line)[1]) for k in ("port", "metrics_port"))
        self.target = f"127.0.0.1:{self.port}"
        self.channel = grpc.insecure_channel(self.target)
        self.stub: Any = pb_grpc.OutlierServiceStub(self.channel)

    def client(self) -> Client:
        """A client of softkin's own."""
        return Client(self.target)

    def read_until(self, text: str) -> str:
        """The next log line that has the text."""
        for line in self.popen.stderr:
            self.log.append(line)
            if text in line:
                return line
        raise AssertionError(f"no {text!r} in the log: {''.join(self.log)}")

    def metric(self, name: str) -> float | None:
        """What /metrics says of a metric without labels; None where it is not there."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=20) as answer:
            found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
        return float(found[1]) if found else None

    def wait_for_pending_rows(self, n: int) -> None:
        """Scraping again and again needs no sleep: every scrape is a round trip."""
        while self.metric("softkin_pending_rows") != n:
            pass

    def finish(self) -> tuple[int, str]:
        """Exit status and the rest of the log."""
        self.log.extend(self.popen.stderr)
        return self.popen.wait(timeout=60), "".join(self.log)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.channel.close()
        self.popen.kill()
        self.popen.wait()
        self.popen.stderr.close()
        self._watchdog.cancel()
        self._watchdog.join()
