"""Build CHANGELOG.md from the fragments in changes/: `--draft` prints the next section, `VERSION DATE` writes it."""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARK = "<!-- sections -->"
KINDS = {"feature": "New", "fix": "Fixed", "perf": "Faster", "docs": "Documentation"}
_NAME = re.compile(r"^(?P<issue>\d+)\.(?P<kind>\w+)(?:\.\d+)?\.md$")


def fragments(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """The fragments by kind, each with its issue, in the order of issues.

    Raises:
        ValueError: for a file whose name says neither issue nor kind, or that is empty.

    """
    found: dict[str, list[tuple[int, Path]]] = {kind: [] for kind in KINDS}
    for path in sorted(folder.glob("*")):
        if path.name == "README.md":
            continue
        match = _NAME.match(path.name)
        if match is None or match["kind"] not in KINDS:
            raise ValueError(f"{path.name}: call it <issue>.<{'|'.join(KINDS)}>.md")
        if not path.read_text().strip():
            raise ValueError(f"{path.name}: is empty")
        found[match["kind"]].append((int(match["issue"]), path))
    return {kind: sorted(listed) for kind, listed in found.items() if listed}


def section(title: str, found: dict[str, list[tuple[int, Path]]]) -> str:
    """One version's section."""
    lines = [f"## {title}", ""]
    for kind, listed in found.items():
        lines += [f"### {KINDS[kind]}", ""]
        for issue, path in listed:
            text = " ".join(path.read_text().split())
            lines.append(f"- {text} (issue {issue})")
        lines.append("")
    return "\n".join(lines)


def release(root: Path, title: str) -> None:
    """Write the section into CHANGELOG.md, newest first, and remove its fragments."""
    found = fragments(root / "changes")
    changelog = root / "CHANGELOG.md"
    before, mark, after = changelog.read_text().partition(MARK)
    if not mark or not found:
        raise ValueError("nothing to release" if mark else f"CHANGELOG.md has no line {MARK}")
    changelog.write_text(f"{before}{MARK}\n\n{section(title, found)}{after.lstrip(chr(10))}")
    for listed in found.values():
        for _, path in listed:
            path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draft", action="store_true", help="print the next section and change nothing")
    parser.add_argument("version", nargs="?")
    parser.add_argument("date", nargs="?", help="the day of the release, as 2026-11-24")
    arguments = parser.parse_args()
    try:
        if arguments.draft:
            print(section("Next", fragments(ROOT / "changes")))
        elif arguments.version and arguments.date:
            release(ROOT, f"{arguments.version} ({arguments.date})")
        else:
            parser.error("give --draft, or a version and a date")
    except ValueError as error:
        sys.exit(f"changelog: {error}")


if __name__ == "__main__":
    main()
