"""The changelog is built from fragments: newest version first, in the order of kinds and issues."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tools import changelog

Tree = Callable[[dict[str, str]], Path]
EMPTY = f"# Changelog\n\n{changelog.MARK}\n"


def test_a_release_writes_the_fragments_and_removes_them(tree: Tree) -> None:
    root = tree(
        {
            "CHANGELOG.md": EMPTY,
            "changes/README.md": "how",
            "changes/12.fix.md": "No message\nis lost.",
            "changes/3.feature.md": "Carries messages.",
            "changes/3.feature.2.md": "And history.",
        }
    )
    changelog.release(root, "0.1.0 (2026-11-24)")
    text = (root / "CHANGELOG.md").read_text()
    assert text.index("## 0.1.0") < text.index("### New") < text.index("- Carries messages. (issue 3)")
    assert (
        text.index("- And history. (issue 3)")
        < text.index("### Fixed")
        < text.index("- No message is lost. (issue 12)")
    )
    assert [path.name for path in (root / "changes").iterdir()] == ["README.md"]


def test_the_newest_version_stands_first(tree: Tree) -> None:
    for version in ("0.1.0", "0.2.0"):
        files = {"changes/1.fix.md": "Better."} | ({"CHANGELOG.md": EMPTY} if version == "0.1.0" else {})
        changelog.release(tree(files), version)
    text = (tree({}) / "CHANGELOG.md").read_text()
    assert text.index("## 0.2.0") < text.index("## 0.1.0")


@pytest.mark.parametrize("name", ["3.md", "feature.md", "3.news.md", "x.fix.md"])
def test_a_fragment_with_a_wrong_name_is_refused(tree: Tree, name: str) -> None:
    root = tree({f"changes/{name}": "Something."})
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        changelog.fragments(root / "changes")


def test_a_release_of_nothing_is_refused(tree: Tree) -> None:
    root = tree({"CHANGELOG.md": EMPTY, "changes/README.md": "how"})
    with pytest.raises(ValueError, match="nothing to release"):
        changelog.release(root, "0.1.0")
