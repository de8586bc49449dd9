"""The rules that the shared fixtures hold every test to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
SKIPPING = {
    "in the test": "import pytest\ndef test_page():\n    pytest.skip('no browser here')\n",
    "by a mark": "import pytest\n@pytest.mark.skip(reason='no browser here')\ndef test_page():\n    pass\n",
    "the whole module": "import pytest\npytest.skip('no browser here', allow_module_level=True)\n",
}


@pytest.mark.parametrize("test", SKIPPING.values(), ids=SKIPPING)
@pytest.mark.parametrize("ci", ["true", ""])
def test_what_is_skipped_fails_in_ci_and_only_there(tmp_path: Path, test: str, ci: str) -> None:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_page.py").write_text(test)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "no browser here" in done.stdout
    assert (done.returncode in {1, 2}) if ci else (done.returncode in {0, 5}), done.stdout


def test_what_needs_rights_that_nobody_can_install_may_be_skipped_in_ci(tmp_path: Path) -> None:
    shutil.copy(CONFTEST, tmp_path)
    skipping = "import pytest\n@pytest.mark.skip(reason='needs root: a namespace')\ndef test_page():\n    pass\n"
    (tmp_path / "test_page.py").write_text(skipping)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env={**os.environ, "CI": "true"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert "needs root: a namespace" in done.stdout
