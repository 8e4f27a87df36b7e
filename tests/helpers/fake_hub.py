"""A Hugging Face hub on this machine, with one data set of files, whose downloads can be made to break off."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = "someone/pets"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """What the library asks of a hub, no more.

    Args:
        files: contents by name, at the root of the data set.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.breaks_off = False
        """Whether every download ends after half of the file."""
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub while it is needed."""
    with Hub(files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def wait_for_nothing():
    """Let no time pass where the process would sleep."""
    time.sleep = lambda seconds: None


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self._answer_path()

    def do_GET(self):
        self._answer_path()

    def log_message(self, *_):
        """Silent."""

    def _answer_path(self):
        path, files = self.path.split("?")[0], self.server.files
        if path == f"/api/datasets/{NAME}/tree/{COMMIT}":
            entries = [{"type": "file", "path": n, "size": len(b), "oid": _etag(b)} for n, b in files.items()]
            self._answer(json.dumps(entries).encode())
        elif path in (f"/api/datasets/{NAME}", f"/api/datasets/{NAME}/revision/{COMMIT}"):
            about = {"id": NAME, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": []}
            about |= {"downloads": 0, "likes": 0, "siblings": [{"rfilename": n} for n in files]}
            self._answer(json.dumps(about).encode())
        elif "/resolve/" in path and (name := path.rpartition("/")[2]) in files:
            self._answer(files[name], etag=_etag(files[name]))
        else:
            self._answer(b"", status=404)

    def _answer(self, body, *, status=200, etag=""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            missing = "Revision" if f"{NAME}/revision/" in self.path else "Entry" if NAME in self.path else "Repo"
            self.send_header("X-Error-Code", f"{missing}NotFound")
        self.end_headers()
        if self.command == "GET":
            broken = etag and self.server.breaks_off
            self.wfile.write(body[: len(body) // 2] if broken else body)
            self.close_connection = self.close_connection or bool(broken)


def _etag(body):
    return hashlib.sha1(body).hexdigest()
