"""The tree names no one machine: no home folder and no package registry's host."""

import re
from pathlib import Path

from tools.checks.tree import files

# Put together here, so that this file does not find itself.
RULES = (
    ("a path of one machine", re.compile(r"(?<![\w.$}])/(?:" + "|".join(("work", "root", "home", "Users")) + r")/\w")),
    (
        "a package registry's host",
        re.compile(
            r"\b[\w.-]*(?:" + "|".join((r"pypi\.org", r"pythonhosted\.org", r"npmjs\.org", r"deb\.debian\.org")) + ")"
        ),
    ),
    ("a package registry's setting", re.compile(r"--(?:extra-)?(?:index-url|find-link[s]|registry[ =]http)")),
)
CODE = (".py", ".pyi", ".pyx", ".pxd", ".h", ".c", ".js", ".mjs", ".html", ".css", ".sh", "")
TEXT = (*CODE, ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".cfg")


def problems(root: Path) -> list[str]:
    """Every such place, with what it is."""
    found = []
    for path in files(root, *TEXT):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            for what, pattern in RULES:
                match = pattern.search(line)
                if match:
                    found.append(f"{path.relative_to(root)}:{number}: {what}: {match.group()}")
    return found
