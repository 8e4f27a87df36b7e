"""The image's recipe, checked without Docker: what it says, and what its install steps do."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from softkin.cli import build_parser
from softkin.settings import ServerSettings


@dataclass(frozen=True)
class Step:
    """One instruction of a Dockerfile."""

    stage: str
    keyword: str
    value: str


class Recipe:
    """A Dockerfile as steps, with global ARG defaults filled in.

    Args:
        text: of the Dockerfile.
        arguments: build arguments that differ from their defaults.
    """

    def __init__(self, text: str, **arguments: str) -> None:
        lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        self.arguments: dict[str, str] = {}
        self.parents: dict[str, str] = {}
        self.steps: list[Step] = []
        stage = ""
        for instruction in re.sub(r"\\\n\s*", "", lines).split("\n"):
            if not instruction.strip():
                continue
            keyword, value = instruction.split(maxsplit=1)
            if keyword == "ARG" and not stage:
                name, default = value.split("=", 1)
                self.arguments[name] = arguments.get(name, default)
            if keyword == "FROM":
                parent, _, stage = self.expand(value).partition(" AS ")
                stage = stage or "final"
                self.parents[stage] = parent
            self.steps.append(Step(stage, keyword, value))

    def expand(self, value: str) -> str:
        """A value with the global arguments put in."""
        return re.sub(r"\$\{(\w+)\}", lambda m: self.arguments.get(m[1], m[0]), value)

    def stages(self, last: str = "final") -> list[str]:
        """A stage and those it is built on, the oldest first."""
        found = []
        while last in self.parents:
            found.insert(0, last)
            last = self.parents[last]
        return [last, *found]

    def of(self, keyword: str, stage: str = "final") -> list[str]:
        """The values of an instruction in a stage and those below it, in order."""
        order = self.stages(stage)
        return [self.expand(s.value) for o in order for s in self.steps if (s.stage, s.keyword) == (o, keyword)]

    def sources(self) -> list[str]:
        """What is copied from the build context."""
        values = [shlex.split(s.value) for s in self.steps if s.keyword == "COPY" and "--from" not in s.value]
        return [source for value in values for source in value[:-1]]

    def environment(self) -> dict[str, str]:
        """The variables of the final image."""
        pairs = [pair for value in self.of("ENV") for pair in shlex.split(value)]
        return dict(pair.split("=", 1) for pair in pairs)

    def commands(self, stage: str) -> list[str]:
        """The shell commands of a stage, without BuildKit's options."""
        values = [s.value for s in self.steps if (s.stage, s.keyword) == (stage, "RUN")]
        return [re.sub(r"^(--\S+\s+)+", "", value) for value in values]


@pytest.fixture(params=["cpu", "cuda"])
def recipe(request, root):
    """The recipe of each variant."""
    return Recipe((root / "deploy/Dockerfile").read_text(), VARIANT=request.param)


@pytest.fixture
def ignored(root):
    """Whether a path of the repository stays out of the build context."""
    lines = (root / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]

    def check(path: str) -> bool:
        out = False
        for pattern in patterns:
            glob = pattern.lstrip("!").removeprefix("**/")
            parts = path.split("/")
            prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))]
            candidates = parts if "**/" in pattern else prefixes
            if any(fnmatch.fnmatch(c, glob) for c in candidates):
                out = not pattern.startswith("!")
        return out

    return check


def test_both_stages_are_built_on_the_same_slim_python(recipe):
    """An environment is copied between them, which only works between equal interpreters."""
    assert recipe.stages("build")[0] == recipe.stages()[0] == "python:3.11-slim"


def test_an_unknown_variant_cannot_be_built(root):
    """Its last stage would stand on one that does not exist, so the build ends with an error."""
    text = (root / "deploy/Dockerfile").read_text()

    assert Recipe(text, VARIANT="gpu").stages()[0] == "variant-gpu"


def test_it_runs_as_a_fixed_user_without_rights(recipe):
    """A number, so that Kubernetes can check it; never root."""
    assert recipe.of("USER")[-1] == "10001:10001"


def test_its_commands_are_commands_of_softkin(recipe):
    """Entry point, default command and health check parse, and the health check asks the default port."""
    entry, command = json.loads(recipe.of("ENTRYPOINT")[-1]), json.loads(recipe.of("CMD")[-1])
    health = json.loads(recipe.of("HEALTHCHECK")[-1].split("CMD", 1)[1])
    port = ServerSettings.model_fields["port"].default

    assert entry == ["softkin"]
    assert build_parser("serve")[0].parse_args(command).bundles == ["/bundle"]
    assert health[0] == "softkin"
    assert build_parser("healthcheck")[0].parse_args(health[1:]).target == f"127.0.0.1:{port}"


def test_it_exposes_the_default_ports(recipe):
    """One for gRPC, one for metrics."""
    ports = [ServerSettings.model_fields[name].default for name in ("port", "metrics_port")]

    assert [int(p) for p in recipe.of("EXPOSE")[-1].split()] == ports


def test_its_environment_is_made_of_settings(recipe, monkeypatch):
    """It listens on all interfaces, and only the variant with CUDA libraries may look for a GPU."""
    variables = {k: v for k, v in recipe.environment().items() if k.startswith("SOFTKIN_")}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = ServerSettings()

    assert {v.removeprefix("SOFTKIN_").lower() for v in variables} <= ServerSettings.model_fields.keys()
    assert settings.host == "0.0.0.0"
    assert settings.device == {"cpu": "cpu", "cuda": "auto"}[recipe.arguments["VARIANT"]]


def test_it_sends_no_usage_data(recipe):
    """Official builds of onnxruntime do unless told otherwise before their first import."""
    assert recipe.environment()["ORT_DISABLE_TELEMETRY"] == "1"


def test_everything_it_copies_exists_and_is_let_through(recipe, root, ignored):
    """The build context has every source, the packages of the wheel among them, and nothing private."""
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]

    for source in recipe.sources():
        assert (root / source).exists(), f"{source} is copied into the image but does not exist"
        assert not ignored(source), f"{source} is copied into the image but ignored"
    for package in build["targets"]["wheel"]["packages"]:
        assert package.split("/")[0] in recipe.sources()
    for path in (".git", ".venv", "runs", "tests", "deploy/compose.yaml", "service/softkin/__pycache__"):
        assert ignored(path)


def test_the_extras_it_installs_lead_to_no_torch(recipe, root):
    """What the install line names, followed through the project's own extras; constraints hold for all of it."""
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    install = next(c for c in recipe.commands("build") if " install " in c)
    asked = re.findall(r"extras=([\w,]+)", install)
    needed, queue = set(), asked[recipe.arguments["VARIANT"] == "cpu"].split(",")
    while queue:
        for requirement in extras[queue.pop()]:
            inner = re.fullmatch(r"softkin\[([\w,]+)\]", requirement)
            queue += inner[1].split(",") if inner else []
            needed.add(requirement)

    assert asked == ["service,cuda", "service"]
    assert "-c deploy/constraints.txt" in install
    assert not [r for r in needed if r.startswith(("torch", "lightning", "onnxruntime>", "onnxruntime="))]
    assert [r for r in needed if r.startswith("onnxruntime-gpu")]


@pytest.fixture
def installed(root, ignored, tmp_path):
    """The CPU image's environment: its build stage, replayed with the paths moved under tmp_path."""
    recipe = Recipe((root / "deploy/Dockerfile").read_text())
    source = tmp_path / "src"
    for path in recipe.sources():
        target = source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (root / path).is_file():
            shutil.copy(root / path, target)
        else:
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(root / path, target, ignore=ignore)
    # A Python with pip and nothing else, as the base image has it. What pip does not compile, the server would: a file
    # written, where the image does not forbid it.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "python"], check=True)
    [packages] = (tmp_path / "python/lib").glob("python3*/site-packages")
    shutil.copytree(Path(find_spec("pip").origin).parent, packages / "pip")
    venv = tmp_path / "softkin"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PATH": f"{tmp_path / 'python/bin'}:{environment['PATH']}", "VARIANT": "cpu", "VENV": str(venv)}
    environment |= {"PIP_NO_COMPILE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for command in recipe.commands("build"):
        done = subprocess.run(
            ["sh", "-ec", command], cwd=source, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return venv


def files(folder: Path) -> dict[str, int]:
    """Every file with the time of its last change."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if not p.is_symlink()}


@pytest.mark.slow
def test_the_replayed_image_serves_a_bundle_is_healthy_and_writes_nothing(installed, root, tiny, tmp_path):
    """Install steps, environment, entry point, command, health check and SIGTERM, in the image's order.

    The user, the file permissions and a root file system that is really read-only need a container: not covered.
    """
    recipe = Recipe((root / "deploy/Dockerfile").read_text())
    home = tmp_path / "home"
    home.mkdir()
    environment = {**recipe.environment(), "PATH": f"{installed / 'bin'}:/usr/bin:/bin"}
    environment |= {"HOME": str(home), "TMPDIR": str(home)}
    before = {**files(installed), **files(tiny.path)}
    command = [*json.loads(recipe.of("ENTRYPOINT")[-1]), *json.loads(recipe.of("CMD")[-1])]
    command[command.index("/bundle")] = str(tiny.path)
    command[0] = str(installed / "bin" / command[0])

    server = subprocess.Popen(
        [*command, "--port", "0", "--metrics-port", "0"], env=environment, cwd=home, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(120, server.kill)
    watchdog.start()
    try:
        log = []
        for line in server.stderr:
            log.append(line)
            if "event=serving" in line:
                break
        assert log, "the server said nothing"
        assert "event=serving" in log[-1], "".join(log)
        port = re.search(r"\bport=(\d+)", log[-1])[1]
        check = json.loads(recipe.of("HEALTHCHECK")[-1].split("CMD", 1)[1])
        check = [a.replace(":50051", f":{port}") for a in check]
        check[0] = str(installed / "bin" / check[0])
        healthy = subprocess.run(check, env=environment, cwd=home, capture_output=True, text=True, timeout=60)
        server.send_signal(signal.SIGTERM)
        log += server.stderr
        status = server.wait(timeout=60)
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
        watchdog.cancel()
        watchdog.join()

    assert "device=cpu" in "".join(log)
    assert healthy.returncode == 0, healthy.stderr
    assert status == 0, "".join(log)
    assert {**files(installed), **files(tiny.path)} == before
    assert files(home) == {}
