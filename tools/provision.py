"""Install what the tests need from Debian: a browser, node, the servers of later versions, and real texts to send.

As root, by apt-get, with services kept from starting. Otherwise without root: the packages and what they depend on are
downloaded and unpacked under .cache/debian, and `--exec PROGRAM …` runs a program from there. Nothing is done when all
is there already. What stays missing is said together with the command that installs it; that is an error when CI=true,
and elsewhere only a note, since the tests that need it are skipped with that reason.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Holds a Debian tree: the first places to look for programs, libraries and texts after the system's own.
UNPACKED = ROOT / ".cache" / "debian"
# Programs that Debian does not have, built from Go modules of a fixed version (whose sums Go itself checks).
BUILT = ROOT / ".cache" / "go" / "bin"
POLICY = Path("/usr/sbin/policy-rc.d")
APT_DEADLINE_S = 900
FORTUNE_LINES_MIN = 10_000
# Several languages and scripts: Latin with and without accents, Cyrillic, Han.
FORTUNES = tuple(f"fortunes{language}" for language in ("", "-bg", "-cs", "-de", "-es", "-it", "-pl", "-ru", "-zh"))
SETTINGS = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Need:
    """Something the tests use: how it is recognised and which packages bring it."""

    what: str
    programs: tuple[str, ...]
    packages: tuple[str, ...]
    module: str = ""  # built with Go, which the packages bring, and put into BUILT under the program's name

    def is_there(self) -> bool:
        if not self.programs:
            return fortune_lines() >= FORTUNE_LINES_MIN
        return any(find_program(name) for name in self.programs)


NEEDS = (
    Need("the node that runs the JavaScript client's tests", ("node", "nodejs"), ("nodejs",)),
    Need("a browser for the page's tests", ("chromium", "chromium-browser", "google-chrome"), ("chromium",)),
    Need("Redis", ("redis-server",), ("redis-server",)),
    Need("etcd", ("etcd",), ("etcd-server",)),
    Need("Prometheus and promtool", ("promtool",), ("prometheus",)),
    Need("Alertmanager and amtool", ("amtool",), ("prometheus-alertmanager",)),
    Need("texts to send", (), FORTUNES),
    Need("nftables, to lose packets in the zombies' tests", ("nft",), ("nftables",)),
    Need("the cables of the zombies' tests", ("ip",), ("iproute2",)),
    Need(
        "toxiproxy, a link with delay",
        ("toxiproxy-server",),
        ("golang-go",),
        "github.com/Shopify/toxiproxy/v2/cmd/server@v2.5.0",
    ),
    Need(
        "kustomize, which puts the manifests together",
        ("kustomize",),
        ("golang-go",),
        "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1",
    ),
)


def find_program(name: str) -> str | None:
    """The path of a program: the system's, or else the one unpacked here."""
    if found := shutil.which(name):
        return found
    for folder in (UNPACKED / "usr/bin", UNPACKED / "usr/sbin", UNPACKED / "bin", BUILT):
        if os.access(folder / name, os.X_OK):
            return str(folder / name)
    return None


def environment_for(program: str) -> dict[str, str]:
    """The environment in which an unpacked program finds its libraries; a system's program needs nothing more."""
    if not program.startswith(str(UNPACKED)):
        return dict(os.environ)
    folders = sorted({str(path.parent) for path in UNPACKED.glob("**/lib*.so*")})
    before = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": ":".join([*folders, before] if before else folders)}


def fortune_files() -> list[Path]:
    """The texts of the fortunes packages, in UTF-8, the indexes beside them left out."""
    found = []
    for folder in (Path("/usr/share/games/fortunes"), UNPACKED / "usr/share/games/fortunes"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.suffix not in {".dat", ".u8"}:
                found.append(path)
    return found


def fortune_lines() -> int:
    return sum(path.read_bytes().count(b"\n") for path in fortune_files())


@contextmanager
def no_services_started() -> Iterator[None]:
    """A policy-rc.d that forbids every start while packages are configured; what stood there before comes back."""
    before = POLICY.read_bytes() if POLICY.exists() else None
    mode = POLICY.stat().st_mode if before is not None else 0o755
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        if before is None:
            POLICY.unlink()
        else:
            POLICY.write_bytes(before)
            POLICY.chmod(mode)


def run(command: list[str], cwd: Path | None = None) -> str:
    """Run a command quietly; its output, or CalledProcessError that carries it."""
    done = subprocess.run(command, cwd=cwd, env=SETTINGS, capture_output=True, text=True, timeout=APT_DEADLINE_S)
    done.check_returncode()
    return done.stdout


def install_as_root(packages: list[str]) -> None:
    with no_services_started():
        run(["apt-get", "-q", "update"])
        # Another installation may hold the lock just now; it gets time to end.
        options = ["-y", "-o", "DPkg::Lock::Timeout=300", "--no-install-recommends"]
        run(["apt-get", "-q", "install", *options, *packages])


def rootless_options() -> list[str]:
    """apt-get with lists and downloads of its own, but the system's view of what is installed."""
    state, cache = UNPACKED / "apt" / "state", UNPACKED / "apt" / "cache"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State": state,
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": cache,
        "APT::Sandbox::User": "",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def packages_to_unpack(simulated: str) -> list[str]:
    """From the output of `apt-get -s install`: what it would install, dependencies included."""
    return [line.split()[1] for line in simulated.splitlines() if line.startswith("Inst ")]


def unpack_without_root(packages: list[str]) -> None:
    """Download the packages and those they depend on that the system lacks, and unpack them under .cache/debian."""
    apt = ["apt-get", "-q", *rootless_options()]
    run([*apt, "update"])
    wanted = packages_to_unpack(run([*apt, "-s", "install", "--no-install-recommends", *packages]))
    archives = UNPACKED / "apt" / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    run([*apt, "download", *wanted], cwd=archives)
    for archive in sorted(archives.glob("*.deb")):
        run(["dpkg", "-x", str(archive), str(UNPACKED)])
        archive.unlink()


def build_with_go(need: Need) -> None:
    """Build the need's module and put the program where `find_program` looks."""
    go = find_program("go")
    if go is None:
        raise OSError("there is no go to build it with")
    print(f"building {need.programs[0]}", flush=True)
    BUILT.mkdir(parents=True, exist_ok=True)
    environment = {**environment_for(go), "GOBIN": str(BUILT)}
    subprocess.run(
        [go, "install", need.module],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=APT_DEADLINE_S,
    )
    path = need.module.partition("@")[0]
    # Go names a program after its folder, or the one above if that is a major version.
    built = re.sub(r"/v[0-9]+$", "", path).rpartition("/")[2]
    os.replace(BUILT / built, BUILT / need.programs[0])


def provide(missing: list[Need]) -> str:
    """Install what is missing; returns why that did not work, or nothing."""
    packages = [package for need in missing for package in need.packages if not (need.module and find_program("go"))]
    why = install(packages) if packages else ""
    for need in missing:
        if need.module:
            try:
                build_with_go(need)
            except subprocess.CalledProcessError as error:
                why += "\n".join((error.stderr or str(error)).strip().splitlines()[-5:])
            except (OSError, subprocess.TimeoutExpired) as error:
                why += str(error)
    return why


def install(packages: list[str]) -> str:
    """Install Debian's packages; returns why that did not work, or nothing."""
    if shutil.which("apt-get") is None:
        return "this machine has no apt-get"
    as_root = os.geteuid() == 0
    print(f"installing {' '.join(packages)}{'' if as_root else ' into .cache/debian'}", flush=True)
    try:
        (install_as_root if as_root else unpack_without_root)(packages)
    except subprocess.CalledProcessError as error:
        return "\n".join((error.stderr or error.stdout or str(error)).strip().splitlines()[-5:])
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exec", nargs=argparse.REMAINDER, metavar="PROGRAM", help="run a program found as above")
    parser.add_argument("--fortunes", action="store_true", help="list the text files and change nothing")
    arguments = parser.parse_args()
    if arguments.fortunes:
        print("\n".join(map(str, fortune_files())))
        return 0
    if arguments.exec:
        program = find_program(arguments.exec[0])
        if program is None:
            sys.exit(f"{arguments.exec[0]} is not installed; run: make provision")
        os.execve(program, [program, *arguments.exec[1:]], environment_for(program))
    missing = [need for need in NEEDS if not need.is_there()]
    if not missing:
        return 0
    why = provide(missing)
    still = [need for need in missing if not need.is_there()]
    for need in still:
        install = f"sudo apt-get install --no-install-recommends {' '.join(need.packages)}"
        print(f"missing: {need.what}. Install with:\n    {install}", file=sys.stderr)
    if why:
        print(why, file=sys.stderr)
    return 1 if still and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
