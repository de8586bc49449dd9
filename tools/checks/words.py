"""No left-over notes to oneself: an issue number or nothing."""

import re
from pathlib import Path

from tools.checks.tree import files

# Put together here, so that this file does not find itself.
LEFT_OVER = re.compile(r"\b(?:" + "|".join(("FIX" + "ME", "TO" + "DO", "XX" + "X")) + r")\b")
SUFFIXES = (".py", ".pyi", ".pyx", ".pxd", ".h", ".c", ".js", ".mjs", ".html", ".css", ".md", ".toml", ".yaml", "")


def problems(root: Path) -> list[str]:
    """Every left-over, with its place."""
    found = []
    for path in files(root, *SUFFIXES):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            match = LEFT_OVER.search(line)
            if match:
                found.append(f"{path.relative_to(root)}:{number}: {match.group()}: do it, or open an issue for it")
    return found
