"""Make .venv and install into it; run by the Makefile with the system's Python, so the standard library only.

Steps: `base` (the environment, what building and running need), `dev` (what checks and tests need too), `install`
(Holdfast and its Python client, editable, so that .venv/bin/holdfast runs what stands in the tree) and `load` (locust
in an environment of its own, since gevent changes the standard library under whoever imports it).
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOAD_VENV = ROOT / ".cache" / "locust-venv"
CLIENT = ROOT / "client" / "python"
PIP_DEADLINE_S = 900
APT_DEADLINE_S = 600
# setuptools compiles every extension anew for an editable install, whatever is there; ours are built by tools/build.py.
EDITABLE = """
import os, sys
from setuptools import build_meta
from setuptools.command.build_ext import build_ext
build_ext.run = lambda self: None
sys.stdout = open(os.devnull, "w")
build_meta.build_editable(sys.argv[1])
"""


def missing_packages() -> list[str]:
    """The Debian packages that building needs and this machine lacks."""
    missing = []
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        missing += ["gcc", "libc6-dev"]
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing.append("python3-dev")
    try:
        import ensurepip  # noqa: F401 - Debian ships venv without it, and then venv makes a broken environment
    except ImportError:
        missing.append("python3-venv")
    return missing


def require_packages() -> None:
    """Install what the compiler and venv need when we may; otherwise say the command and stop."""
    missing = missing_packages()
    if not missing:
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"Missing on this machine: {', '.join(missing)}. Install with:\n    sudo {' '.join(install)}")
    print(f"installing {' '.join(missing)}", flush=True)
    settings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "-q", "update"], install):
        subprocess.run(command, check=True, env=settings, timeout=APT_DEADLINE_S, stdout=subprocess.DEVNULL)


def make_venv(venv: Path = VENV) -> None:
    """Create an environment unless a working one is there."""
    python = venv / "bin" / "python"
    asked = [str(python), "-m", "pip", "--version"]
    if python.exists() and subprocess.run(asked, capture_output=True, timeout=PIP_DEADLINE_S).returncode == 0:
        return
    print(f"creating {venv.relative_to(ROOT)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True, timeout=PIP_DEADLINE_S)


def pip_install(*arguments: str | Path, venv: Path = VENV) -> None:
    command = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, cwd=ROOT, timeout=PIP_DEADLINE_S).returncode:
        sys.exit("pip could not install the packages above; is a package index reachable?")


def extra(name: str) -> list[str]:
    """An optional part of what pyproject.toml asks for."""
    import tomllib  # not at the top, so that an older Python still reaches the message about its age

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted: list[str] = pyproject["project"]["optional-dependencies"][name]
    return wanted


def requirements(dev: bool) -> list[str]:
    """What pyproject.toml asks for: to build and to run, and with `dev` to check and to test."""
    import tomllib

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*pyproject["build-system"]["requires"], *pyproject["project"]["dependencies"]]
    if dev:
        wanted += extra("dev")
    return wanted


def step_base() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - the one place that any Python may reach
        sys.exit(f"Holdfast needs Python 3.11 or later; this is {sys.version.split()[0]}. Try: make PYTHON=python3.11")
    require_packages()
    make_venv()
    print("installing what Holdfast needs to build and run", flush=True)
    pip_install(*requirements(dev=False))


def step_dev() -> None:
    print("installing what checks and tests need", flush=True)
    pip_install(*requirements(dev=True))


def editable_wheel(folder: str) -> Path:
    """Build the product's editable wheel: a path entry and the program, for extensions that are in place already."""
    command = [str(VENV / "bin" / "python"), "-c", EDITABLE, folder]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PIP_DEADLINE_S)
    if built.returncode:
        sys.exit(f"the editable install failed:\n{built.stdout}{built.stderr}")
    return next(Path(folder).glob("*.whl"))


def step_install() -> None:
    """Editable, without build isolation: the extensions are already in place and stay as they are."""
    with tempfile.TemporaryDirectory() as folder:
        pip_install("--force-reinstall", "--no-deps", editable_wheel(folder))
    if (CLIENT / "pyproject.toml").exists():
        pip_install("--no-build-isolation", "-e", CLIENT)


def step_load() -> None:
    """Locust; Holdfast's core comes from the tree, which the same Python has built."""
    make_venv(LOAD_VENV)
    print("installing what make locust needs", flush=True)
    pip_install(*extra("load"), venv=LOAD_VENV)


def main() -> None:
    steps = {"base": step_base, "dev": step_dev, "install": step_install, "load": step_load}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=steps)
    steps[parser.parse_args().step]()


if __name__ == "__main__":
    main()
