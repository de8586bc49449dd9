"""The process that workers and the router are forked from, so that they share what importing their code costs.

It imports the modules that it is told, freezes what came of it, and from then on forks a process for each request. It
has one thread, no event loop and no ZeroMQ context, and draws no key: all of that belongs to the processes themselves.

The new process must be the supervisor's child and not this one's: the supervisor reaps it, its end follows the
supervisor's, and this process may die without a connection being lost. So the fork is done twice, the one in between
ends at once, and the orphan goes to the supervisor, which adopts orphans. That is so before the answer is sent; and the
new process does nothing until its configuration arrives, which the supervisor writes after the answer. When this
process dies in between, the configuration never comes and the new one ends.

A request is one packet: JSON `{"title", "command"}` and descriptors, the first of which becomes standard input and the
others 3, 4 and so on: the counters, the socket to the supervisor, and what else the process is to have (a worker its
listening sockets). `command` is a module that was imported here, whose `main(parent)` is run, or a program with its
arguments. A module's `preload()` does what else can be shared. The answer is `{"pid"}` or `{"errno", "message"}`.
"""

import contextlib
import errno
import fcntl
import gc
import importlib
import json
import os
import select
import shutil
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from core.process import die_with_parent, set_title

STATS_FD, COMMANDS_FD, TCP_FD, WS_FD = 3, 4, 5, 6
PACKET_BYTES_MAX = 65_536
_FDS_MAX = 8
_CONFIG_DEADLINE_MS = 10_000
_EXIT_NO_CONFIG = 75  # EX_TEMPFAIL


def serve(connection: socket.socket, supervisor: int) -> None:
    """Answers requests until the supervisor closes the connection."""
    while True:
        # no deadline: for as long as the supervisor lives, whose end closes the connection
        packet, fds, _, _ = socket.recv_fds(connection, PACKET_BYTES_MAX, _FDS_MAX)
        try:
            if not packet:
                return
            answer = _start(json.loads(packet), fds, supervisor, connection)
        finally:
            for fd in fds:
                os.close(fd)
        # no deadline: the supervisor asked, and its end closes the connection
        connection.send(json.dumps(answer).encode())


def _start(request: dict[str, object], fds: Sequence[int], supervisor: int, connection: socket.socket) -> object:
    command = request["command"]
    assert isinstance(command, list)
    assert len(fds) >= 1
    try:
        if command[0] not in sys.modules and shutil.which(command[0]) is None:
            raise OSError(errno.ENOENT, f"{command[0]} is neither a program nor a module that is ready to be forked")
        return {"pid": _fork_twice(lambda: _child(str(request["title"]), command, fds, supervisor, connection))}
    except OSError as error:
        return {"errno": error.errno, "message": error.strerror}


def _fork_twice(child: Callable[[], NoReturn]) -> int:
    """The pid of a process that runs `child` and whose parent is, by the time of the return, the supervisor."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        between = os.fork()
        if between == 0:
            try:
                pid = os.fork()
            except OSError as error:
                os._exit(error.errno or errno.EAGAIN)
            if pid == 0:
                child()
            os.write(writing, pid.to_bytes(4, "little"))
            os._exit(0)
        # no deadline: this process does nothing but fork and exit
        code = os.waitstatus_to_exitcode(os.waitpid(between, 0)[1])
        if code != 0:
            code = code if code > 0 else errno.EAGAIN
            raise OSError(code, f"cannot fork: {os.strerror(code)}")
        # no deadline: it has written that before it ended
        return int.from_bytes(os.read(reading, 4), "little")
    finally:
        os.close(reading)
        os.close(writing)


def _child(title: str, command: list[str], fds: Sequence[int], supervisor: int, connection: socket.socket) -> NoReturn:
    """Makes the new process what was asked for. It ends here, so that nothing of this process is cleaned up twice."""
    connection.detach()
    _place(fds)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    if not any(events & select.POLLIN for _, events in poll.poll(_CONFIG_DEADLINE_MS)):
        os._exit(_EXIT_NO_CONFIG)
    # A session of its own keeps Ctrl-C at a terminal from it: the supervisor decides the order in which they end.
    os.setsid()
    code = 1
    try:
        if command[0] not in sys.modules:
            os.execvp(command[0], command)
        set_title(f"holdfast {title}")
        code = sys.modules[command[0]].main(supervisor)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _place(fds: Sequence[int]) -> None:
    """Moves the descriptors to their places and closes all others but standard output and error."""
    places = (0, *range(STATS_FD, STATS_FD + len(fds) - 1))
    beyond = STATS_FD + len(fds)
    # First above the places, so that none is overwritten before it has moved.
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD, beyond) for fd in fds]
    for fd, place in zip(above, places, strict=True):
        os.dup2(fd, place)
    os.closerange(places[-1] + 1, os.sysconf("SC_OPEN_MAX"))


def prepare(modules: Sequence[str]) -> None:
    """Imports what will be forked and makes it ready to be shared.

    Raises:
        RuntimeError: a module has started a thread, which a fork would leave behind with whatever it had locked.

    """
    gc.disable()  # a collection would leave holes in the pages, which the children would fill, each for itself
    for module in modules:
        importlib.import_module(module).preload()
    threads = os.listdir("/proc/self/task")
    if len(threads) != 1:
        raise RuntimeError(f"{len(threads)} threads after importing {', '.join(modules)}: it must stay one")
    gc.freeze()
    gc.enable()


def main(arguments: Sequence[str]) -> int:
    """Serves on the connection that is standard input; `arguments` are modules to import."""
    supervisor = os.getppid()
    set_title("holdfast zygote")
    die_with_parent(supervisor)
    prepare(arguments)
    with socket.socket(fileno=0) as connection, contextlib.suppress(ConnectionError):
        serve(connection, supervisor)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
