"""Provisioning installs only what is missing, puts the machine's policy back, and works without root."""

import os
import subprocess
from pathlib import Path

import pytest

from tools import provision

ROOT = Path(__file__).resolve().parents[2]


def test_the_packages_of_a_simulated_installation_are_read() -> None:
    simulated = "Reading package lists...\nInst liblzf1 (3.6-3 [amd64])\nInst redis-server (5:7)\nConf liblzf1 (3.6)\n"
    assert provision.packages_to_unpack(simulated) == ["liblzf1", "redis-server"]


@pytest.mark.parametrize("before", [None, "#!/bin/sh\nexit 0\n"])
def test_the_policy_that_was_there_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    policy = tmp_path / "policy-rc.d"
    if before is not None:
        policy.write_text(before)
        policy.chmod(0o700)
    monkeypatch.setattr(provision, "POLICY", policy)
    with provision.no_services_started():
        assert subprocess.run([policy], timeout=10).returncode == 101, "every start of a service is refused"
    assert (policy.read_text() if policy.exists() else None) == before
    assert before is None or policy.stat().st_mode & 0o777 == 0o700


def test_what_debian_lacks_is_built_with_go_under_the_name_that_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "go"
    compiler.write_text(
        '#!/bin/sh\n[ "$1 $2" = "install example.org/thing/v2/cmd/server@v1.0.0" ] && : > "$GOBIN/server"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(provision, "BUILT", tmp_path / "built")
    monkeypatch.setattr(provision, "install", lambda _: pytest.fail("Go is there"))
    need = provision.Need("thing", ("thing-server",), ("golang-go",), "example.org/thing/v2/cmd/server@v1.0.0")
    assert provision.provide([need]) == ""
    assert (tmp_path / "built" / "thing-server").is_file()
    versioned = provision.Need("stuff", ("stuff",), ("golang-go",), "example.org/stuff/v5@v5.1.0")
    compiler.write_text('#!/bin/sh\n: > "$GOBIN/stuff"\n')
    assert provision.provide([versioned]) == "", "the program of a module's major version has the name before it"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    lacking = provision.Need("other", ("other",), ("golang-go",), "example.org/other@v1.0.0")
    assert provision.provide([lacking]), "why it did not work is said"


def test_nothing_is_installed_when_all_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision.Need, "is_there", lambda _: True)
    monkeypatch.setattr(provision, "provide", lambda _: pytest.fail("nothing is missing"))
    monkeypatch.setattr("sys.argv", ["provision"])
    assert provision.main() == 0


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_what_stays_missing_is_an_error_in_ci_only_and_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ci: str, code: int
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(provision.Need, "is_there", lambda need: need.what != "etcd")
    monkeypatch.setattr(provision, "provide", lambda _: "no network")
    monkeypatch.setattr("sys.argv", ["provision"])
    assert provision.main() == code
    said = capsys.readouterr().err
    assert "apt-get install --no-install-recommends etcd-server" in said
    assert "no network" in said


def test_an_unpacked_program_is_found_and_gets_its_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "UNPACKED", tmp_path)
    program = tmp_path / "usr/bin/some-unpacked-server"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    library = tmp_path / "usr/lib/x/libsome.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    assert provision.find_program("some-unpacked-server") == str(program)
    assert str(library.parent) in provision.environment_for(str(program))["LD_LIBRARY_PATH"]
    assert provision.environment_for("/bin/sh") == dict(os.environ)


def test_each_verb_that_runs_tests_over_servers_provides_them_first() -> None:
    """`make test` does so before its two parts."""
    verbs = {
        line.partition(":")[0]: line for line in (ROOT / "Makefile").read_text().splitlines() if ": $(PLACED)" in line
    }
    for verb in ("chaos", "replay", "asan"):
        assert " provision " in verbs[verb]
