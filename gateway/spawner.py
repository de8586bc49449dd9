"""The supervisor's end of the zygote: asks it for processes, and starts it again when it has died.

What it starts are children of this process, to be watched and reaped like any other (see `gateway.zygote`).
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from core.owned import ACCOUNT, Held
from core.process import adopt_orphans
from gateway import logs
from gateway.zygote import PACKET_BYTES_MAX

# Importing takes a tenth of a second on a quiet machine; the supervisor gives a process 30 s to get ready.
ANSWER_DEADLINE_S = 20.0
# Once the imports are done a fork takes milliseconds; every other start waits behind a zygote that hangs.
NEXT_DEADLINE_S = 3.0
# -P keeps the folder that the node was started in off the module path.
_COMMAND = (sys.executable, "-P", "-m", "gateway.zygote")

_log = logs.get("supervisor")


class Spawner:
    """Starts processes through a zygote, one at a time.

    Args:
        modules: what the zygote imports, so that processes forked from it need not.

    """

    _adopting: ClassVar[set["Spawner"]] = set()
    """Those for whose sake this process adopts orphans: from their first start until they are closed."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = tuple(modules)
        self._held: list[Held] = []
        self._turn = asyncio.Lock()
        self._zygote: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._answered = False
        self._groups: set[int] = set()  # of zygotes that ended, in which there may be something half started

    @property
    def pid(self) -> int | None:
        """The zygote's, once the first process was asked for."""
        return None if self._zygote is None else self._zygote.pid

    async def start(self, title: str, command: Sequence[str], config_fd: int, *fds: int) -> int:
        """Starts a process that begins once something can be read from `config_fd`; returns its pid.

        It gets `config_fd` as its standard input and the others as 3, 4 and so on (STATS_FD and the next of
        `gateway.zygote`), and has ended by itself when all write ends of `config_fd` are closed before that.

        Raises:
            OSError: the process or the zygote could not be started.

        """
        async with self._turn:  # deadline: that of each start before this one, ANSWER_DEADLINE_S at most
            self.reap()
            request = json.dumps({"title": title, "command": list(command)}).encode()
            try:
                async with asyncio.timeout(NEXT_DEADLINE_S if self._answered else ANSWER_DEADLINE_S):
                    answer = await self._ask(request, (config_fd, *fds))
            except (OSError, TimeoutError) as error:
                self._end()
                raise OSError(errno.ECHILD, f"the zygote failed: {error!r}") from error
            except BaseException:
                self._end()  # its answer would be taken for that to the next request
                raise
        self._answered = True
        if "pid" not in answer:
            raise OSError(answer["errno"], answer["message"])
        return int(answer["pid"])

    def close(self) -> None:
        """Ends the zygote; processes that came from it are not touched."""
        self._end()
        self._adopting.discard(self)
        if not self._adopting:
            adopt_orphans(False)

    def reap(self) -> None:
        """Buries what a zygote that died had half started: it has no configuration, so it ends by itself, and it is
        this process's child by now.
        """
        for group in list(self._groups):
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-group, os.WNOHANG) != (0, 0):
                    pass
                continue
            self._groups.discard(group)

    async def _ask(self, request: bytes, fds: Sequence[int]) -> dict[str, Any]:
        if self._zygote is not None and self._zygote.poll() is not None:
            _log.warning("zygote_ended", code=self._zygote.returncode)
            self._end()
        if self._connection is None:
            self._begin()
        assert self._connection is not None
        socket.send_fds(self._connection, [request], fds)
        # deadline: that of `start`, the only caller
        packet = await asyncio.get_running_loop().sock_recv(self._connection, PACKET_BYTES_MAX)
        if not packet:
            raise ConnectionResetError(errno.ECONNRESET, "it ended: its own message is above")
        answer: dict[str, Any] = json.loads(packet)
        return answer

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            self._connection = ours
            self._adopting.add(self)
            self._held = [
                ACCOUNT.hold("handle", "the zygote", object_=self),
                ACCOUNT.hold("control_fd", "the socket to the zygote", fd=ours.fileno()),
            ]
            adopt_orphans(True)
            self._zygote = subprocess.Popen([*_COMMAND, *self._modules], stdin=theirs.fileno(), start_new_session=True)

    def _end(self) -> None:
        """Ends the zygote and gives back what it held; what it had half started gets no configuration, and ends."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        for held in self._held:
            held.close()
        if self._zygote is None:
            return
        self._zygote.kill()
        self._zygote.wait()  # no deadline: it was killed, and what was killed ends
        # What was half started is still in its group; processes with a configuration have left it.
        self._groups.add(self._zygote.pid)
        self.reap()
        self._zygote = None
        self._answered = False
