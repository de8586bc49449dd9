"""Installs the peers at pinned versions into build/peers, outside of the product's environment.

What cannot be installed is told with its reason, and left out; the rest goes on. A peer is installed anew when one of
the files that pin it has changed.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtest.measure import ROOT
from tools import provision

SOURCES = Path(__file__).resolve().parent / "peers"
PEERS = ROOT / "build" / "peers"
PYTHON = PEERS / "python" / "bin" / "python"
NODE = PEERS / "node"
BIN = PEERS / "bin"
NATS = "v2.15.2"
DEADLINE_S = 600


class NotInstalledError(Exception):
    """A peer that cannot be had here, with the reason."""


def run(*command: str | Path, cwd: Path = ROOT, **settings: str) -> None:
    """A step of an installation.

    Raises:
        NotInstalledError: it failed, is missing or took too long.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, cwd=cwd, capture_output=True, text=True, timeout=DEADLINE_S, env={**os.environ, **settings}
        )
    except FileNotFoundError:
        raise NotInstalledError(f"there is no program {words[0]} here") from None
    except subprocess.TimeoutExpired:
        raise NotInstalledError(f"{' '.join(words[:3])} took longer than {DEADLINE_S} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise NotInstalledError(f"{' '.join(words[:3])} failed: {' / '.join(said)}")


def install_python() -> None:
    run(sys.executable, "-m", "venv", "--clear", PEERS / "python")
    run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", SOURCES / "requirements.txt")


def install_node() -> None:
    # Beside the modules, since node looks for them from the program's own folder upwards.
    shutil.copytree(SOURCES / "node", NODE, dirs_exist_ok=True)
    run("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", cwd=NODE)


def install_go() -> None:
    BIN.mkdir(parents=True, exist_ok=True)
    run("go", "build", "-o", f"{BIN}/", "./gws", "./nbio", cwd=SOURCES / "go")


def install_nats() -> None:
    BIN.mkdir(parents=True, exist_ok=True)
    run("go", "install", f"github.com/nats-io/nats-server/v2@{NATS}", GOBIN=str(BIN))


def install_mosquitto() -> None:
    if provision.find_program("mosquitto"):
        return
    if shutil.which("apt-get") is None:
        raise NotInstalledError("this machine has no apt-get")
    try:
        provision.unpack_without_root(["mosquitto"])
    except (OSError, subprocess.SubprocessError) as error:
        raise NotInstalledError(f"unpacking the Debian package failed: {error}") from error


@dataclass(frozen=True)
class Installation:
    """A step that brings one or more peers; `pins` are the files that say which versions."""

    name: str
    install: Callable[[], None]
    peers: tuple[str, ...]
    pins: tuple[Path, ...]


INSTALLATIONS = (
    Installation("python", install_python, ("picows", "websockets"), (SOURCES / "requirements.txt",)),
    Installation("node", install_node, ("ws", "socketio"), tuple(sorted((SOURCES / "node").glob("*.*")))),
    Installation("go", install_go, ("gws", "nbio"), tuple(sorted((SOURCES / "go").rglob("*.*")))),
    Installation("nats", install_nats, ("nats",), (Path(__file__),)),
    Installation("mosquitto", install_mosquitto, ("mosquitto",), (Path(__file__),)),
)


def _digest(pins: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in pins:
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def provide(wanted: set[str]) -> dict[str, str]:
    """Installs what the wanted peers need; for each that cannot be had, why."""
    missing: dict[str, str] = {}
    for one in INSTALLATIONS:
        # The environment in Python also holds what draws the plots.
        if not wanted & set(one.peers) and one.name != "python":
            continue
        stamp, digest = PEERS / "stamps" / one.name, _digest(one.pins)
        if stamp.exists() and stamp.read_text() == digest:
            continue
        print(f"bench: installing {', '.join(one.peers)}", flush=True)
        try:
            one.install()
        except NotInstalledError as error:
            missing |= dict.fromkeys(one.peers, str(error))
            continue
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(digest)
    return missing


def pinned(text: str, name: str) -> str:
    """The version of a package in a requirements file, a package.json or a go.mod."""
    found = re.search(rf'(?m)(?:^|["/\s]){re.escape(name)}(?:"?\s*[:=]+\s*"?|\s+)(v?\d[\w.]*)', text)
    return found[1].removeprefix("v") if found else "unknown"


def versions() -> dict[str, str]:
    """The version of each peer, as it goes onto the page."""
    python, node, go = ((SOURCES / name).read_text() for name in ("requirements.txt", "node/package.json", "go/go.mod"))
    uvloop = f"uvloop {pinned(python, 'uvloop')}"
    return {
        "nats": f"nats-server {NATS.removeprefix('v')}",
        "mosquitto": mosquitto_version(),
        "picows": f"picows {pinned(python, 'picows')}, {uvloop}",
        "websockets": f"websockets {pinned(python, 'websockets')}, {uvloop}",
        "ws": f"ws {pinned(node, 'ws')}, bufferutil {pinned(node, 'bufferutil')}, msgpackr {pinned(node, 'msgpackr')}",
        "socketio": f"socket.io {pinned(node, 'socket.io')}, bufferutil {pinned(node, 'bufferutil')}",
        "gws": f"gws {pinned(go, 'gws')}",
        "nbio": f"nbio {pinned(go, 'nbio')}",
    }


def mosquitto_version() -> str:
    program = provision.find_program("mosquitto")
    if program is None:
        return "mosquitto"
    done = subprocess.run(
        [program, "-h"], capture_output=True, text=True, timeout=20, env=provision.environment_for(program)
    )
    return (done.stdout.splitlines() or ["mosquitto"])[0].replace(" version", "")
