"""Each of the project's own checks finds what it is for, and says nothing of what is right."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.checks import compiled, gil, imports, mirror, places, sizes, words
from tools.checks.tree import cython_functions

Tree = Callable[[dict[str, str]], Path]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("core/ring.pyx", "from gateway.worker import Worker"),
        ("core/ring.pxd", "from router.log cimport (\n    Log,\n)"),
        ("core/ring.pyi", "import router"),
        ("router/bridge.py", "from gateway import worker"),
        ("router/bridge.py", "def late():\n    import gateway.config"),
        ("gateway/worker.py", "import tests.conftest"),
        ("client/python/src/holdfast_client/__init__.py", "from core.codes import Code"),
    ],
)
def test_an_import_against_the_layers_is_found(tree: Tree, path: str, line: str) -> None:
    (found,) = imports.problems(tree({path: line + "\n"}))
    assert found.startswith(f"{path}:")


def test_imports_along_the_layers_are_right(tree: Tree) -> None:
    root = tree(
        {
            "core/ring.pyx": "from core.slab cimport Slab\nfrom libc cimport stdint\nfrom .wheel cimport Wheel\n",
            "router/log/memory.py": "from core import ledger\nfrom . import port\nfrom ..config import RouterConfig\n",
            "gateway/worker.py": "from core import loop\nfrom router.config import RouterConfig\n",
            "client/python/src/holdfast_client/session.py": "import msgpack\nfrom . import codes\n",
            "client/python/tests/test_session.py": "from core import codes\n",
        }
    )
    assert imports.problems(root) == []


def lines(count: int, indent: str = "    ") -> str:
    return "".join(f"{indent}x = {number}\n" for number in range(count))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("core/a.pyx", "cdef int longest(\n    int x,\n) noexcept nogil:\n" + lines(68)),
        ("core/a.pxd", "cdef inline int longest() noexcept nogil:\n" + lines(70)),
        ("gateway/a.py", "def longest():\n" + lines(70)),
        ("gateway/a.py", "class A:\n    async def longest(self):\n" + lines(70, "        ")),
        ("core/a.h", "static int\nlongest(int x) {\n" + "    x++;\n" * 68 + "}\n"),
    ],
)
def test_a_function_of_71_lines_is_found_and_one_of_70_is_not(tree: Tree, path: str, text: str) -> None:
    (found,) = sizes.problems(tree({path: text}))
    assert found.startswith(f"{path}:longest: 71 lines")
    shorter = re.sub(r" +x = 1\n", "", text, count=1).replace("    x++;\n", "", 1)
    assert sizes.problems(tree({path: shorter})) == []


def test_a_file_of_601_lines_is_found(tree: Tree) -> None:
    assert sizes.problems(tree({"core/a.py": "x = 1\n" * 600})) == []
    assert sizes.problems(tree({"core/a.py": "x = 1\n" * 601}))[0].startswith("core/a.py: 601 lines")


def test_the_list_of_exceptions_may_not_grow_and_must_shrink(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree({"core/a.py": "x = 1\n" * 650, sizes.EXCEPTIONS: "core/a.py 650  # splits with the next version\n"})
    assert ["at most 0" in found for found in sizes.problems(root)] == [True]
    monkeypatch.setattr(sizes, "EXCEPTIONS_MAX", 1)
    assert sizes.problems(root) == []
    assert "shrink or drop" in sizes.problems(tree({"core/a.py": "x = 1\n" * 640}))[0]
    assert "651 lines, at most 650" in sizes.problems(tree({"core/a.py": "x = 1\n" * 651}))[0]


@pytest.mark.parametrize(
    "text",
    [
        "cdef int work() noexcept nogil:\n    with gil:\n        print(1)\n",
        "cdef int work() noexcept with gil:\n    return 0\n",
        "cdef int work() nogil:\n    return 0\n",
        "cdef int work(int a,\n              int b) nogil\n",
        "cdef int work() except -1 nogil:\n    return 0\n",
        "ctypedef int (*callback)(void *) nogil\n",
        "cdef int work() noexcept nogil:\n    PyGILState_Ensure()\n    return 0\n",
    ],
)
def test_the_gil_taken_where_it_may_not_be_is_found(tree: Tree, text: str) -> None:
    assert len(gil.problems(tree({"core/a.pyx": text}))) == 1


def test_the_gil_taken_where_it_may_be_is_right(tree: Tree) -> None:
    text = '''
cdef extern from "x.h":
    int c_close "close"(int) nogil
    void invariant(bint) nogil

ctypedef int (*callback)(void *) noexcept nogil

cdef int gil_deliver(void *batch) noexcept with gil:
    """Once a batch; `with gil` stands in this text too."""
    return 0

cdef int gil_log() noexcept nogil:
    with gil:  # a batch is in hand
        return 0

def run():
    with nogil:
        pass
'''
    assert gil.problems(tree({"core/a.pyx": text})) == []


def test_modules_and_test_files_without_each_other_are_found(tree: Tree) -> None:
    root = tree(
        {
            "core/ring.pyx": "",
            "core/batch.pxd": "",
            "core/_testing.pyx": "",
            "router/log/memory.py": "",
            "router/log/etcdpb_pb2.py": "",
            "gateway/__init__.py": "",
            "tests/core/test_batch.py": "",
            "tests/core/test_gone.py": "",
            "tests/router/log/test_memory.py": "",
        }
    )
    assert mirror.problems(root) == [
        "core/ring: has no test file tests/core/test_ring.py",
        "tests/core/test_gone.py: there is no module core/gone",
    ]


def test_left_over_notes_are_found(tree: Tree) -> None:
    root = tree({"core/a.pyx": "x = 1  # FIX" + "ME later\n", "docs/b.md": "autodo, todo\n"})
    assert [found.split(": ")[0] for found in words.problems(root)] == ["core/a.pyx:1"]


@pytest.mark.parametrize(
    "text", ["/{}/x".format("root"), "/{}/ann/x".format("home"), "--index" + "-url x", "https://py" + "pi.org/"]
)
def test_places_of_one_machine_are_found(tree: Tree, text: str) -> None:
    assert len(places.problems(tree({"docs/a.md": text + "\n"}))) == 1


@pytest.mark.parametrize("text", ["/worker/x", "a/work/x", "${ROOT}/work/x", "https://example.org/"])
def test_other_paths_are_right(tree: Tree, text: str) -> None:
    assert places.problems(tree({"docs/a.md": text + "\n"})) == []


def test_functions_of_cython_are_cut_at_their_ends() -> None:
    text = (
        "cdef class Box:\n"
        "    cdef int one(self) noexcept nogil:\n"
        '        """Says (what\n'
        'it does)."""\n'
        "        return 1\n"
        "\n"
        "    # a remark\n"
        "    def two(self, x=(1, 2)):\n"
        "        return x\n"
        "\n"
        "cdef inline const char *three(\n"
        "    int x,\n"
        ") noexcept nogil:\n"
        "    return NULL\n"
    )
    found = [(function.name, function.first, function.last) for function in cython_functions(text)]
    assert found == [("one", 2, 5), ("two", 8, 9), ("three", 11, 14)]


SETUP = 'DIRECTIVES = {"language_level": 3, "boundscheck": False}\n'


def test_what_the_compilers_dislike_is_found(tree: Tree) -> None:
    root = tree(
        {
            "setup.py": SETUP,
            "core/__init__.py": "",
            "core/bad.pxd": "cdef int divided(int a, int b) noexcept nogil\n",
            "core/bad.pyx": (
                "cdef int divided(int a, int b) noexcept nogil:\n    return a // b\n\n"
                "cdef void hinted() nogil:\n    pass\n\n"
                "def run():\n    with nogil:\n        hinted()\n    return divided(4, 2)\n"
            ),
        }
    )
    found = "\n".join(compiled.problems(root))
    assert "nogil function …4core_3bad_divided calls" in found
    assert "performance hint: core/bad.pyx" in found


def test_a_clean_module_passes_the_compilers_and_the_answer_is_kept(tree: Tree) -> None:
    root = tree(
        {
            "setup.py": SETUP,
            "core/__init__.py": "",
            "core/good.pyx": "cdef int f(int a) noexcept nogil:\n    return a + 1\n\ndef run():\n    return f(1)\n",
        }
    )
    assert compiled.problems(root) == []
    kept = root / compiled.CACHE
    kept.write_text(kept.read_text().replace("[]", '["kept"]'))
    assert compiled.problems(root) == ["kept"]
    tree({"core/good.pyx": "def run():\n    return 2\n"})
    assert compiled.problems(root) == []
