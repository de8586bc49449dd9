"""What the memory checkers are told: which build they check, and that a fault ends the run."""

from pathlib import Path

import pytest

from tools import sanitize


@pytest.mark.parametrize(("tool", "build"), [("asan", "asan"), ("valgrind", "checked")])
def test_the_build_that_is_checked_is_the_one_that_is_imported(tool: str, build: str) -> None:
    given = sanitize.environment(tool)
    assert given["HOLDFAST_BUILD"] == build
    assert given["PYTHONPATH"] == str(sanitize.ROOT / "build" / build)
    assert given["PYTHONMALLOC"] == "malloc"
    assert ("LD_PRELOAD" in given) == (tool == "asan")


def test_leaks_are_looked_for_and_end_the_run() -> None:
    assert "detect_leaks=1" in sanitize.environment("asan")["ASAN_OPTIONS"]
    assert "halt_on_error=1" in sanitize.environment("asan")["UBSAN_OPTIONS"]
    assert "--leak-check=full" in sanitize.command("valgrind", [])


def test_every_chosen_test_is_there_or_has_no_module() -> None:
    missing = [name for name in sanitize.VALGRIND_TESTS if not sanitize.exists(name)]
    assert not missing
    assert all(Path(path).exists() for path in sanitize.command("valgrind", []) if path.startswith("tests/core/"))


LEAK = """Direct leak of 64 byte(s) in 1 object(s) allocated from:
    #0 0x7f0 in __interceptor_malloc ../../asan_malloc_linux.cpp:69
    #1 0x7f1 in {where}
    #2 0x55 in _PyEval_EvalFrameDefault (/usr/bin/python3.11+0x1)"""


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("__pyx_f_4core_4ring_ring_lease core/ring.pxd:83", 1),
        ("ring_lease (build/asan/core/ring.cpython-311.so+0x12)", 1),
        ("PyMem_RawMalloc (/usr/bin/python3.11+0x2)", 0),
    ],
)
def test_only_leaks_that_our_modules_allocated_count(where: str, count: int) -> None:
    log = f"==1==ERROR: LeakSanitizer: detected memory leaks\n\n{LEAK.format(where=where)}\n\nSUMMARY: x"
    assert len(sanitize.faults([log])) == count


def test_every_error_counts() -> None:
    assert len(sanitize.faults(["==1==ERROR: AddressSanitizer: heap-use-after-free on address 0x1"])) == 1
    assert len(sanitize.faults(["core/mpack.pxd:5:3: runtime error: shift exponent 64"])) == 1


VALGRIND = """==7== Invalid read of size 8
==7==    at 0x4023C6C: memcpy (memcpy.S:160)
==7==    by 0x4004BEE: {where}
==7==    by 0x40059BE: _PyEval_EvalFrameDefault (ceval.c:253)
==7==
==7== Invalid read of size 8
==7==    at 0x4023C6C: strncmp (strcmp-sse2.S:160)
==7==    by 0x4004BEE: is_dst (dl-load.c:216)
==7==    by 0x40059BE: _dl_dst_count (dl-load.c:253)
==7==    by 0x40059BF: __pyx_f_4core_loop (loop.pyx:1)
"""


@pytest.mark.parametrize(("where", "count"), [("ring_write (ring.pxd:66)", 1), ("PyBytes_FromString (bytes.c:1)", 0)])
def test_of_valgrinds_records_those_count_whose_innermost_frames_are_ours(where: str, count: int) -> None:
    assert len(sanitize.valgrind_faults([VALGRIND.format(where=where)])) == count
