"""What a process can say of itself alone: its tasks, threads, Python objects and heap, and, in detail, what they are.

Asked by the supervisor over the command channel (`core.commands`), by the names in `handlers`. `sample` is a handful of
numbers and cheap; `sample_detail` names things and is for a report. Nothing here takes a lock of the data plane; the
heap's figures take malloc's, one arena at a time.
"""

import asyncio
import ctypes
import gc
import heapq
import linecache
import re
import sys
import threading
import tracemalloc
from collections import Counter, deque
from typing import Any

from core.commands import Handler

NAMES_MAX = 200
SITES_MAX = 20
_Sizes = dict[str, tuple[int, int]]
"""Bytes and blocks that are allocated, by line."""
_libc = ctypes.CDLL(None)


class _Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and later, mallinfo(3): sums over all arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def heap() -> dict[str, int]:
    """Bytes of malloc that are in use, and that are free but kept; empty where the C library does not say."""
    try:
        mallinfo2 = _libc.mallinfo2
    except AttributeError:
        return {}
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return {"heap_used_bytes": found.uordblks + found.hblkhd, "heap_free_bytes": found.fordblks}


def tasks() -> Counter[str]:
    """The tasks of the running loop that have not ended, counted by their coroutine and the line that they stand at."""
    return Counter(_place(task) for task in asyncio.all_tasks())


def types() -> Counter[str]:
    """The objects that the garbage collector follows, but for those frozen before the process was forked, by type."""
    return Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in map(type, gc.get_objects()))


def threads() -> Counter[str]:
    """The threads that Python knows, by name; the numbers that tell one from the next are left out."""
    return Counter(re.sub(r"\d+", "N", thread.name) for thread in threading.enumerate())


def handlers(trace_frames: int = 0) -> dict[str, Handler]:
    """What a process answers about itself.

    Args:
        trace_frames: frames of each allocation of Python to keep from now on; 0 for none.

    """
    traces = _Traces(trace_frames)

    async def sample() -> dict[str, int]:
        return own_sample()

    async def sample_detail() -> dict[str, Any]:
        return {
            "tasks": dict(tasks().most_common(NAMES_MAX)),
            "types": dict(types().most_common(NAMES_MAX)),
            "python threads": dict(threads().most_common(NAMES_MAX)),
            "heap": heap(),
            "allocations": traces.growth(),
        }

    async def sample_mark() -> None:
        """Two marks from here, allocations are compared with now."""
        traces.mark()

    return {"sample": sample, "sample_detail": sample_detail, "sample_mark": sample_mark}


def own_sample() -> dict[str, int]:
    """The numbers, by name; called in the loop's thread."""
    return {
        "tasks": len(asyncio.all_tasks()),
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        **heap(),
    }


def _place(task: asyncio.Task[Any]) -> str:
    """`coroutine at file:line`, the line being that of the innermost frame that waits."""
    coroutine: Any = task.get_coro()
    name = getattr(coroutine, "__qualname__", repr(coroutine))
    frame = None
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or frame
        coroutine = getattr(coroutine, "cr_await", None)
    return name if frame is None else f"{name} at {frame.f_code.co_filename}:{frame.f_lineno}"


class _Traces:
    """tracemalloc against the last mark but one; keeps the sums a line, not the snapshots, as large as the heap."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._marks: deque[_Sizes] = deque(maxlen=2)
        if frames and not tracemalloc.is_tracing():
            tracemalloc.start(frames)

    def mark(self) -> None:
        if self._frames:
            self._marks.append(_sizes())

    def growth(self) -> list[dict[str, Any]]:
        """The lines whose live allocations have grown most in bytes since then, the largest first."""
        if not self._frames:
            return []
        before: _Sizes = self._marks[0] if self._marks else {}
        grown = [
            (size - before.get(line, (0, 0))[0], blocks - before.get(line, (0, 0))[1], line)
            for line, (size, blocks) in _sizes().items()
        ]
        return [
            {"line": line, "code": _code(line), "bytes": size, "blocks": blocks}
            for size, blocks, line in heapq.nlargest(SITES_MAX, grown)
            if size > 0
        ]


def _sizes() -> _Sizes:
    own = (tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, linecache.__file__))
    lines = tracemalloc.take_snapshot().filter_traces(own).statistics("lineno")
    return {f"{line.traceback[0].filename}:{line.traceback[0].lineno}": (line.size, line.count) for line in lines}


def _code(line: str) -> str:
    file, _, number = line.rpartition(":")
    return linecache.getline(file, int(number)).strip()
