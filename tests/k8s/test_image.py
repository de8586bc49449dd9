"""The Dockerfile says what it is to say, and what its steps make runs in an environment of its own, not as root.

There is no container engine here, so its instructions are read, and the essence of its RUN steps is done without one:
the wheel from the files that COPY names (with the extensions that are already built), alone in a new environment.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import free_ports, wait_until
from tests.k8s.manifests import K8S, ROOT, pod

DEADLINE_S = 120
# The build backend, with the extensions that stand in the tree instead of translated and compiled ones: that takes
# minutes.
BUILD = """
import shutil, sys
from pathlib import Path
import Cython.Build
from setuptools import build_meta
from setuptools.command.build_ext import build_ext
wheels, tree = sys.argv[1:]  # setuptools puts its own there
def placed(command):
    for built in Path(tree).glob("core/*.so"):
        folder = Path(command.build_lib, "core")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(built, folder)
build_ext.run = placed
Cython.Build.cythonize = lambda extensions, **_: extensions
build_meta.build_wheel(wheels)
"""


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def stages() -> list[list[tuple[str, str]]]:
    """What stands behind each FROM."""
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def said(stage: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for found, rest in stage if found == word]


def test_the_image_has_no_compiler_and_is_not_root() -> None:
    build, final = stages()
    base = "python:3.11-slim-bookworm"
    assert said(build, "FROM") == [f"{base} AS build"]
    assert said(final, "FROM") == [base]
    assert "gcc" in " ".join(said(build, "RUN"))
    assert "apt-get" not in " ".join(said(final, "RUN"))
    assert said(final, "COPY") == ["--from=build /opt/holdfast /opt/holdfast"]
    assert json.loads(said(final, "ENTRYPOINT")[0]) == ["holdfast"]
    assert json.loads(said(final, "CMD")[0]) == ["run"]
    for role in ("gateway", "router"):
        context = pod("base", role)["securityContext"]
        assert said(final, "USER") == [f"{context['runAsUser']}:{context['runAsGroup']}"]


def test_the_image_is_of_the_version_that_the_manifests_ask_for() -> None:
    (image,) = yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text())["images"]
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert image["newTag"] == version[1]


def copied() -> list[str]:
    sources = [word for rest in said(stages()[0], "COPY") for word in rest.split()[:-1]]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert all(f"!{source}" in allowed for source in sources), "what is copied must be in the context"
    return sources


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that others may read, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-image-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def program(place: Path) -> Path:
    """`holdfast` of the wheel, in an environment that has nothing else but what it depends on."""
    source, wheels, environment = place / "source", place / "wheels", place / "environment"
    source.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    wheels.mkdir()
    run([sys.executable, "-c", BUILD, str(wheels), str(ROOT)], source)
    (wheel,) = wheels.glob("*.whl")
    built = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("core/") and name.endswith(".so")}
    assert len(built) == len(list((ROOT / "core").glob("*.pyx"))), "every extension is in the wheel"
    run([sys.executable, "-m", "venv", str(environment)], place)
    python = environment / "bin" / "python"
    run([str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)], place)
    # What it depends on, from the tests' environment; a .pth in there (our own tree's) is not followed from here.
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n")
    return environment / "bin" / "holdfast"


def run(command: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HOLDFAST_"))}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


@pytest.mark.slow
def test_the_wheel_alone_makes_the_keys_that_the_readme_asks_for(program: Path, place: Path) -> None:
    made = run([str(program), "keys"], place)
    for name in ("public_key", "secret_key"):
        assert re.search(rf"^{name} = ", made, re.MULTILINE), name
        assert name in (K8S / "README.md").read_text()


@pytest.mark.slow
def test_the_wheel_alone_serves_and_ends_without_being_root(program: Path, place: Path) -> None:
    tcp, websocket, admin = free_ports(3)
    home = place / "tmp"
    home.mkdir()
    home.chmod(0o777)
    variables = {
        "PATH": f"{program.parent}:/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOLDFAST_LOG_BACKEND": "none",
        "HOLDFAST_GATEWAY_WORKERS": "1",
        "HOLDFAST_GATEWAY_PORT": str(tcp),
        "HOLDFAST_GATEWAY_WS_PORT": str(websocket),
        "HOLDFAST_ADMIN_PORT": str(admin),
    }
    # Root's own Python may be where nobody else may read; reading alone is allowed, and writing as for anybody.
    caps = (
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=+dac_read_search",
        "--bounding-set=-all,+dac_read_search",
    )
    other = ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", *caps] if os.geteuid() == 0 else []
    with (place / "output").open("wb") as output:
        command = [*other, str(program), "run"]
        node = subprocess.Popen(command, cwd=home, env=variables, stdout=output, stderr=subprocess.STDOUT)
        try:
            ready = f"http://127.0.0.1:{admin}/readyz"
            wait_until(lambda: answers(ready), lambda: (place / "output").read_text(), deadline_s=60)
            status = Path(f"/proc/{node.pid}/status").read_text()
            assert re.search(r"^Uid:\t(?!0\t)", status, re.MULTILINE)
            node.send_signal(signal.SIGTERM)
            assert node.wait(timeout=60) == 0, (place / "output").read_text()
        finally:
            if node.poll() is None:
                node.kill()
                node.wait(timeout=10)
