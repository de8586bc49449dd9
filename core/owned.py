"""What the control thread of a process holds: tasks, handles, descriptors, clients.

Each has a name, a place where it was made, and its line in the ledger. Every asyncio task of the process's loop comes
from one function, the loop's task factory (`Account.own_loop`), which keeps it (asyncio only knows tasks weakly),
counts it, and remembers who asked for it; `Account.task` gives it an owner as well, and logs its failure. A handle
that is collected before it was closed says where it was made. An audit holds what is noted here against what asyncio
and the kernel know: tasks, and descriptors in /proc.

A process has one account, ACCOUNT, as it has one asyncio loop and one table of descriptors.
"""

import asyncio
import logging
import socket
import sys
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from types import CodeType, FrameType
from typing import Any, TypeVar

from core import descriptors
from core.descriptors import Descriptor
from core.ledger import CONTROL_KINDS, Stats

STACK_FRAMES = 6
SETTLE_DEADLINE_S = 5.0

_T = TypeVar("_T")
_Line = tuple[CodeType, int]
# uvloop's own frames are C and do not show.
_INNER = {__file__, *(module.__file__ for module in (asyncio.base_events, asyncio.tasks, asyncio.taskgroups))}
_log = logging.getLogger("holdfast")


class Held:
    """One thing that is held, until `close`; closing it again does nothing."""

    def __init__(self, account: "Account", kind: str, name: str, fd: int, made: Sequence[_Line]) -> None:
        self.kind = kind
        self.name = name
        self.fd = fd
        self.was = descriptors.look(fd) if fd >= 0 else None
        self.collected = False
        self.owner: Held | None = None
        self.task: weakref.ref[asyncio.Task[Any]] | None = None
        self.finalizer: weakref.finalize[..., Any] | None = None
        self._account = account
        self._made = made

    @property
    def place(self) -> str:
        """Where it was made: `gateway/admin.py:347 in start`."""
        code, line = self._made[0]
        return f"{short(code.co_filename)}:{line} in {code.co_name}"

    @property
    def stack(self) -> traceback.StackSummary:
        """The frames that made it, the innermost last."""
        frames = [
            traceback.FrameSummary(code.co_filename, line, code.co_name, lookup_line=False)
            for code, line in reversed(self._made)
        ]
        return traceback.StackSummary.from_list(frames)

    @property
    def closed(self) -> bool:
        return self not in self._account.held

    def close(self) -> None:
        """It is released."""
        if self._account.release(self) and self.finalizer is not None:
            self.finalizer.detach()

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Account:
    """What is held by the control thread of this process.

    Args:
        stats: where it is counted; `count_in` moves the account to another.

    """

    def __init__(self, stats: Stats | None = None) -> None:
        self.held: set[Held] = set()
        self._stats = stats or Stats()
        self._known: dict[int, Descriptor] = {}
        self._tables: dict[str, Callable[[], int]] = {}
        self._tasks: dict[asyncio.Task[Any], Held] = {}
        self._explain: list[Callable[[int], bool]] = []

    def count_in(self, stats: Stats) -> None:
        """Count in these words from now on, what is held already as well."""
        for one in self.held:
            stats.opened(one.kind)
        self._stats = stats

    def read(self) -> dict[str, dict[str, int]]:
        """The counters, as `core.ledger.read` gives them."""
        return self._stats.read()

    # -------------------------------------------------------------------------------------------------------- holding

    def hold(self, kind: str, name: str, *, object_: object = None, fd: int = -1, depth: int = 1) -> Held:
        """Note something that is held from now on.

        Args:
            kind: one of CONTROL_KINDS.
            name: what to call it in a finding.
            object_: the Python object that stands for it; when it is collected before `close`, that is a leak.
            fd: its descriptor, if it has one: as long as it is held, that must be open.
            depth: frames between this call and the place to name.

        """
        one = Held(self, kind, name, fd, _stack(sys._getframe(depth)))
        if object_ is not None:
            one.finalizer = weakref.finalize(object_, self._on_collected, one)
            one.finalizer.atexit = False
        self.held.add(one)
        self._stats.opened(kind)
        return one

    def release(self, one: Held) -> bool:
        """Used by `Held.close`. False: it was released before, or a test wants the release to be forgotten."""
        if one not in self.held or self._stats.leaks_now(one.kind):
            return False
        self.held.discard(one)
        self._stats.closed(one.kind)
        return True

    def task(self, work: Coroutine[Any, Any, _T], name: str, *, owner: Held | None = None) -> asyncio.Task[_T]:
        """Run a coroutine as a task. Its failure is logged.

        Args:
            work: what to run.
            name: what to call it in logs and findings.
            owner: whose it is: once that is closed, a task that still runs is a leak.

        """
        task = asyncio.create_task(work, name=name)
        if task not in self._tasks:
            self._adopt(task)
        self._tasks[task].owner = owner
        task.add_done_callback(self._log_failure)
        return task

    def _adopt(self, task: asyncio.Task[Any]) -> None:
        held = self.hold("task", task.get_name(), depth=_depth())
        held.task = weakref.ref(task)
        self._tasks[task] = held
        task.add_done_callback(self._on_done)

    def own_loop(self) -> None:
        """Own the running loop's tasks: the one that it was started with, and all that are made from now on."""
        task = asyncio.current_task()
        assert task is not None
        task.set_name("main")
        self._adopt(task)
        asyncio.get_running_loop().set_task_factory(self._make)

    def _make(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        self._adopt(task)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task).close()

    def _log_failure(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._stats.count("tasks_failed")
            _log.warning("task %s ended with %r", task.get_name(), error)

    def _on_collected(self, one: Held) -> None:
        if one in self.held:
            one.collected = True
            self._stats.count("handles_leaked")
            _log.error(
                "%s %s was collected while open; it was made here:\n%s", one.kind, one.name, "".join(one.stack.format())
            )

    # ------------------------------------------------------------------------------------------------------- auditing

    def table(self, kind: str, count: Callable[[], int] | None) -> None:
        """Tell how many of a kind there are by somebody else's table, which the audit asks as well; None: no more."""
        if count is None:
            self._tables.pop(kind, None)
        else:
            self._tables[kind] = count

    def explain(self, is_known: Callable[[int], bool]) -> None:
        """Tell which descriptors come and go without being noted here."""
        self._explain.append(is_known)

    async def settle(self) -> None:
        """What is open now belongs to the interpreter, the event loop and the libraries.

        To be called once, when the process has everything that it starts with; whatever is opened later has to be
        somebody's.
        """
        one, other = socket.socketpair()
        with other:  # with its first stream uvloop opens a descriptor in reserve
            async with asyncio.timeout(SETTLE_DEADLINE_S):
                _, writer = await asyncio.open_unix_connection(sock=one)
                writer.close()
                await writer.wait_closed()
        for fd in descriptors.listed():
            found = descriptors.look(fd)
            if found is not None:
                self._known[fd] = found

    def strangers(self, others: set[int]) -> dict[int, Descriptor]:
        """The open descriptors that are nobody's; `others` are the data plane's."""
        mine = {one.fd for one in tuple(self.held)}  # asked from another thread
        found = {}
        for fd in descriptors.listed() - others - mine:
            now = descriptors.look(fd)
            if now is not None and self._known.get(fd) != now and not any(known(fd) for known in self._explain):
                found[fd] = now
        return found

    def audit(self) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]]]:
        """Kinds with what is opened, closed and found; and what is wrong. To be called in the loop's thread."""
        ledger = self.read()["ledger"]
        examined = {one: self._examine(one) for one in tuple(self.held)}  # threads of ours hold files
        findings = [finding for finding in examined.values() if finding is not None]
        sound = [one for one, finding in examined.items() if finding is None]
        found = Counter(one.kind for one in sound)
        kinds = {}
        for kind in CONTROL_KINDS:
            opened, closed = ledger[f"{kind}_opened"], ledger[f"{kind}_closed"]
            kinds[kind] = {"opened": opened, "closed": closed, "found": found[kind]}
            table = self._tables.get(kind)
            if table is not None and (there := table()) != found[kind]:
                said = f"is one of {found[kind]} held, but there are {there}"
                findings += [_finding(one, said) for one in sound if one.kind == kind]
                kinds[kind]["found"] = there
        findings += self._unowned_tasks()
        return kinds, findings

    def _examine(self, one: Held) -> dict[str, Any] | None:
        task = one.task() if one.task is not None else None
        if task is not None:
            one.name = task.get_name()  # it gets its name after the factory has made it
        if one.collected:
            return _finding(one, "was collected while open")
        if one.fd >= 0 and descriptors.look(one.fd) != one.was:
            return _finding(one, f"has no descriptor any more: {one.fd} was closed behind its back")
        # in _tasks, it is about to be released: what is called at its end has not been called yet
        if one.task is not None and (task is None or task.done()) and task not in self._tasks:
            return _finding(one, "has ended, and is still held")
        if one.owner is not None and one.owner.closed:
            return _finding(one, f"outlives its owner, {one.owner.name}")
        return None

    def _unowned_tasks(self) -> list[dict[str, Any]]:
        try:
            tasks = asyncio.all_tasks()
        except RuntimeError:  # no loop runs here
            return []
        found = []
        for task in tasks:
            if task not in self._tasks and not task.done():
                found.append(
                    {
                        "kind": "task",
                        "key": id(task),
                        "value": 0,
                        "place": _where(task),
                        "what": f"{task.get_name()} is nobody's",
                    }
                )
        return found


async def end_tasks(tasks: Collection[asyncio.Task[Any]], within_s: float = 1.0) -> None:
    """Cancel tasks, and wait for their ends, for so long."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=within_s)


def _finding(one: Held, what: str) -> dict[str, Any]:
    return {"kind": one.kind, "key": max(one.fd, 0), "value": 0, "what": f"{one.name} {what}", "place": one.place}


def _where(task: asyncio.Task[Any]) -> str:
    """Where an unowned task's coroutine begins; who made it, asyncio does not keep."""
    work = task.get_coro()
    code = getattr(work, "cr_code", None) or getattr(work, "gi_code", None)
    return "" if code is None else f"{short(code.co_filename)}:{code.co_firstlineno} in {code.co_name}"


def _depth() -> int:
    """How many frames `hold` is from whoever asked asyncio, or this module, for a task."""
    depth = 1
    while sys._getframe(depth).f_code.co_filename in _INNER:
        depth += 1
    return depth


def _stack(frame: FrameType) -> list[_Line]:
    """The frames from `frame` outwards. Every task asks for them, so what can wait is left to `Held.stack`."""
    found: list[_Line] = []
    at: FrameType | None = frame
    while at is not None and len(found) < STACK_FRAMES:
        found.append((at.f_code, at.f_lineno))
        at = at.f_back
    return found


def short(path: str) -> str:
    """The last two parts of a path: enough to find the file, and nothing of the machine."""
    return "/".join(path.rsplit("/", 2)[-2:])


ACCOUNT = Account()
