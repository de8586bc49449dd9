"""The check for waits without a deadline finds each kind of them, and lets stand what is bounded or says why not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.checks import deadlines

Tree = Callable[[dict[str, str]], Path]
ROOT = Path(__file__).resolve().parents[2]


def inside(body: str, head: str = "async def work(self, thing, event, task):") -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"import asyncio\nimport subprocess\n\n{head}\n{lines}"


@pytest.mark.parametrize(
    "body",
    [
        "await event.wait()",
        "await task",
        "await thing.queue.get()",
        "await thing.sock_recv(1, 2)",
        "await thing.reader.readexactly(4)",
        "await thing.writer.drain()",
        "await thing.writer.wait_closed()",
        "await asyncio.open_connection('h', 1)",
        "await asyncio.gather(event.wait(), other())",
        "await asyncio.gather(*(each.wait() for each in thing))",
        "await asyncio.shield(task)",
        "await asyncio.wait([task])",
        "await asyncio.wait([task], timeout=None)",
        "await asyncio.wait_for(task, None)",
        "await asyncio.to_thread(thing.run)",
        "await thing.ask('x', deadline_s=None)",
        "await (await asyncio.create_subprocess_exec('x')).wait()",
        "async with thing.lock:\n    pass",
        "async with asyncio.TaskGroup() as group:\n    pass",
        "async for line in thing.stdout:\n    pass",
        "lines = [line async for line in thing.stdout]",
        "async with asyncio.timeout(None):\n    await task",
        "async with asyncio.timeout(1):\n    async def later():\n        await task",
        "async with asyncio.timeout(1):\n    pass\nawait task",
        "subprocess.run(['x'])",
        "subprocess.check_output(['x'], timeout=None)",
        "thing.process.communicate()",
        "thing.process.wait()",
        "thing.thread.join()",
        "thing.lock.acquire()",
        "thing.queue.get()",
        "urllib.request.urlopen(thing)",
        "thing.opener.open(thing)",
        "socket.create_connection(('h', 1))",
        "http.client.HTTPConnection('h', 1)",
        "thing.socket.recv(1)",
        "thing.socket.accept()",
        "thing.socket.sendall(b'x')",
        "select.select([thing], [], [])",
        "os.waitpid(thing, 0)",
        "fcntl.flock(thing, fcntl.LOCK_EX)",
        "sys.stdin.buffer.read()",
        "signal.pause()",
        "async with asyncio.timeout(math.inf):\n    await task",
        "await asyncio.wait_for(task, float('inf'))",
        "await asyncio.wait([task], timeout=math.inf)",
        "await asyncio.sleep(math.inf)",
        "await thing.ask('x', deadline_s=math.inf)",
        "from subprocess import run\nrun(['x'])",
        "import subprocess as sp\nsp.run(['x'])",
        "from asyncio import wait_for as within\nawait within(task, None)",
        "os.system('x')",
        "os.read(thing, 1)",
        "lock = threading.Lock()\nwith lock:\n    pass",
        "with thing.changed as changed, threading.Condition():\n    pass",
        "thing.condition.wait_for(thing.is_done)",
        "thing.thread.join(None)",
        "thing.queue.get(True)",
        "thing.queue.get(block=True)",
        "thing.lock.acquire(True)",
        "thing.process.stdout.readline()",
        "future = asyncio.run_coroutine_threadsafe(other(), thing)\nfuture.result()",
        "thing.pool.submit(thing).result()",
        "poll = select.poll()\npoll.poll()",
        "poll = select.epoll()\npoll.poll(-1)",
        "thing.selector = selectors.DefaultSelector()\nthing.selector.select()",
        "one = socket.socket()\none.connect(('h', 1))",
        "def sub(one: socket.socket):\n    one.send(b'x')",
        "thing.socket.settimeout(None)\nthing.socket.recv(1)",
        "thing.socket.recvfrom_into(thing)",
    ],
)
def test_a_wait_without_a_deadline_is_found(tree: Tree, body: str) -> None:
    found = deadlines.problems(tree({"gateway/a.py": inside(body) + "\nasync def other():\n    return 1\n"}))
    assert found
    assert all(line.startswith("gateway/a.py:") and "without a deadline" in line for line in found)


@pytest.mark.parametrize(
    "body",
    [
        "async with asyncio.timeout(1):\n    await task\n    async for line in thing.stdout:\n        pass",
        "async with asyncio.timeout_at(thing.deadline):\n    if thing:\n        await event.wait()",
        "async with asyncio.timeout(1), thing.lock:\n    await task",
        "await asyncio.wait_for(event.wait(), 3)",
        "await asyncio.wait_for(event.wait(), timeout=3)",
        "await asyncio.wait([task], timeout=3)",
        "await asyncio.sleep(thing)",
        "await other()",
        "await asyncio.gather(other(), *(other() for _ in thing))",
        "await asyncio.shield(other())",
        "waiting = asyncio.ensure_future(event.wait())",
        "subprocess.run(['x'], timeout=3)",
        "thing.process.communicate(timeout=3)",
        "thing.process.wait(3)",
        "thing.thread.join(3)",
        "thing.lock.acquire(timeout=3)",
        "thing.queue.get(timeout=3)",
        "await thing.ask('x', deadline_s=3)",
        "', '.join(thing)\nthing.get('x')",
        "urllib.request.urlopen(thing, timeout=3)",
        "socket.create_connection(('h', 1), 3)",
        "thing.socket.settimeout(3)\nthing.socket.recv(1)",
        "thing.socket.setblocking(False)\nthing.socket.accept()",
        "thing.socket.recv(zmq.NOBLOCK)",
        "os.waitpid(thing, os.WNOHANG)",
        "from subprocess import run\nrun(['x'], timeout=3)",
        "thing.queue.get(True, 3)",
        "thing.queue.get(True, timeout=3)",
        "thing.queue.get(block=False)",
        "thing.lock.acquire(False)",
        "thing.lock.acquire(True, 3)",
        "thing.condition.wait_for(thing.is_done, 3)",
        "future = asyncio.run_coroutine_threadsafe(other(), thing)\nfuture.result(3)",
        "task = asyncio.create_task(other())\ntask.result()",
        "poll = select.poll()\npoll.poll(1000)\nthing.process.poll()",
        "thing.link.connect('h')\nthing.link.send(b'x')",
        "with thing.file as file, open('x') as other_file:\n    pass",
        "await task  # no deadline: for as long as the process lives",
        "# deadline: that of the caller, and of nobody else\nawait task",
        "await thing(\n    1,\n    2,\n)  # no deadline: said at the end of the statement",
        "# no deadline: above the statement\nanswer = await thing(\n    1,\n)",
        "async for line in thing:  # no deadline: until the other side ends it\n    pass",
    ],
)
def test_a_wait_that_is_bounded_or_says_why_not_may_stand(tree: Tree, body: str) -> None:
    assert deadlines.problems(tree({"gateway/a.py": inside(body) + "\nasync def other():\n    return 1\n"})) == []


def test_methods_of_the_trees_own_classes_are_checked_where_they_are_written(tree: Tree) -> None:
    text = """
import asyncio
from holdfast_client.session import connect

class Box:
    def __init__(self, link: Link | None):
        self.link = link
        self.other, self.number = Link(), 1

    async def use(self, links: list[Link], given):
        await self.link.take()
        await self.other.take()
        await self.close()
        await Link.make()
        made = Link()
        await made.take()
        for one in links:
            await one.take()
        with contextlib.closing(self.make()) as closed:
            await closed.take()
        made = [Link() for _ in range(3)]
        await made[0].take()
        await LINK.take()
        async with self.other, await connect("x") as session:
            async for item in session:
                await session.receive()
        await given.take()

    async def close(self): ...

    def make(self) -> "Link": ...

    def named(self, kind: Literal["007", "a b"]): ...

LINK = Link()

class Base:
    async def take(self): ...
    async def __aexit__(self, *_): ...

class Link(Base):
    @classmethod
    async def make(cls) -> "Link":
        return cls()
"""
    client = """
class Session:
    async def receive(self): ...
    async def __aiter__(self): ...
    async def __aexit__(self, *_): ...

async def connect(url) -> Session:
    return Session()
"""
    root = tree({"gateway/a.py": text, "client/python/src/holdfast_client/session.py": client})
    assert deadlines.problems(root) == [
        f"gateway/a.py:{text[: text.index('await given')].count(chr(10)) + 1}: waits without a deadline:"
        " await given.take()"
    ]


def test_a_comment_that_covers_nothing_is_found_and_a_bare_one_does_not_count(tree: Tree) -> None:
    root = tree({"router/a.py": "# no deadline: for as long as it lives\n\nx = 1\n"})
    assert deadlines.problems(root) == ["router/a.py:1: this comment covers no wait"]
    root = tree({"router/a.py": "async def work(task):\n    await task  # no deadline: because\n"})
    assert len(deadlines.problems(root)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "count = epoll_wait(edge.epoll_fd, events, 64, -1)",
        "count = epoll_wait(edge.epoll_fd, events,\n                   64, -1)",
        "epoll_pwait(fd, events, 64, -1, NULL)",
        "poll(&entry, 1, -1)",
        "zmq_poll(items, 1, -1)",
        "pthread_cond_wait(&ready, &mutex)",
        "pthread_join(thread, NULL)",
        "sem_wait(&box.full)",
        "epoll_wait(fd, events_of(edge, first(x)), 64, - 1)",
        "waitpid(pid, NULL, 0)",
        "flock(fd, LOCK_EX)",
        "zmq_msg_recv(&message, bus, 0)",
    ],
)
def test_an_endless_wait_in_the_compiled_part_is_found(tree: Tree, text: str) -> None:
    wrong = {"core/a.pyx": f"cdef int run() noexcept nogil:\n    {text}\n"}
    assert len(deadlines.problems(tree(wrong))) == 1
    excused = {
        "core/a.pyx": f"cdef int run() noexcept nogil:\n    # no deadline: it was just told to end\n    {text}\n"
    }
    assert deadlines.problems(tree(excused)) == []


def test_a_name_for_minus_one_is_no_deadline(tree: Tree) -> None:
    for name in ("cdef int FOREVER = -1", "#define FOREVER (-1)"):
        text = f"{name}\nepoll_wait(fd, events, 64, FOREVER)\nepoll_wait(fd, events, 64, 9)\n"
        assert [one.partition(": ")[0] for one in deadlines.problems(tree({"core/a.pyx": text}))] == ["core/a.pyx:2"]


def test_a_bounded_wait_in_the_compiled_part_may_stand(tree: Tree) -> None:
    text = (
        "count = epoll_wait(fd, events, 64, _wait_ms(edge) - 1)\npoll(&entry, 1, 1000)\nint sem_wait(sem_t *)\n"
        "epoll_wait(fd, events, 64, wait_of(edge))\nother(fd, -1)\nwaitpid(pid, NULL, WNOHANG)\n"
        "flock(fd, LOCK_EX | LOCK_NB)\nzmq_msg_recv(&message, bus, ZMQ_DONTWAIT)\n"
    )
    assert deadlines.problems(tree({"core/a.pxd": text, "loadtest/a.c": text})) == []


def test_a_file_that_cannot_be_read_is_said_and_the_others_are_checked(tree: Tree) -> None:
    found = deadlines.problems(tree({"router/a.py": "def (:\n", "router/b.py": inside("await task")}))
    assert [line.split(": ")[:2][-1] for line in found] == ["cannot be read", "waits without a deadline"]


def test_other_folders_are_not_looked_at(tree: Tree) -> None:
    text = inside("await task")
    assert deadlines.problems(tree({"tests/a.py": text, "loadtest/bench/peers/a.py": text})) == []


def test_the_tree_waits_nowhere_without_a_deadline_and_lists_what_says_why() -> None:
    wrong, excused = deadlines.examined(ROOT)
    assert wrong == []
    assert {"gateway/worker.py", "router/process.py"} <= {excuse.path for excuse in excused}
