"""No wait without a deadline: every `await` on something foreign, every blocking call, every wait of the C loops.

An `await` may stand when it is inside `async with asyncio.timeout(…)`, when it is `wait_for`, `asyncio.wait` or a pause
with its time given, when it is told `deadline_s`, `timeout_s` or `timeout` by name, or when it is a coroutine of the
tree itself, whose body is checked here like any other. All other waits say in a comment, on their own lines or just
above, why they may stand:

    # no deadline: <why it may last for ever>
    # deadline: <whose>                                 it has one, given elsewhere

`python -m tools.checks.deadlines` lists these. A comment that covers nothing is a problem too.

A time that is None or infinite is none. What a name stands for is told from the imports, and from what it was made by
or is annotated with anywhere in its module. Whether a descriptor blocks cannot be told: `read`, `recv` and `accept` of
the compiled part are not looked at.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.checks.coroutines import Function, Index
from tools.checks.tree import files

CHECKED = ("core", "gateway", "router", "client/python/src", "loadtest", "tools")
# Programs of the peers that we measure against: written as their own pages show it.
SKIPPED = ("loadtest/bench/peers/",)
_EXCUSE = re.compile(r"(?:#|//|/\*) ?(?P<kind>no deadline|deadline): (?P<why>\S+(?: \S+)+)")
_SCOPES = {"asyncio.timeout", "asyncio.timeout_at"}
# What only passes on the wait of its arguments.
_PASSES = {"asyncio.shield", "asyncio.gather", "asyncio.create_task", "asyncio.ensure_future"}
_STARTS = _PASSES | {"asyncio.wait_for", "asyncio.run_coroutine_threadsafe"}
# Blocking calls by their full names, and the place (from 0) where their time-out may stand among the arguments.
_CALLS = {
    "subprocess.run": None,
    "subprocess.call": None,
    "subprocess.check_call": None,
    "subprocess.check_output": None,
    "urllib.request.urlopen": 2,
    "http.client.HTTPConnection": 2,
    "http.client.HTTPSConnection": 2,
    "socket.create_connection": 1,
    "select.select": 3,
    "os.wait": None,
    "os.system": None,
    "os.popen": None,
    "signal.pause": None,
    "signal.sigwait": None,
}
# Those that may be told not to wait, by a flag or by the descriptor.
_DESCRIPTOR_CALLS = {"os.read", "os.waitpid", "fcntl.flock", "socket.recv_fds"}
# Methods that block, with the place of their time-out. With other arguments, `join` and `get` are those of text and
# dict.
_METHODS = {"wait": 0, "wait_for": 1, "join": 0, "get": 0, "acquire": 0, "communicate": 1}
_SOCKET = {"recv", "recvfrom", "recv_into", "recvfrom_into", "recvmsg", "accept", "sendall"}
# These are usual names: only of what is known to be a socket.
_SOCKET_ONLY = {"connect", "send", "sendto", "sendmsg"}
_SOCKETS = {"socket.socket", "socket.create_connection", "socket.create_server"}
_LOCKS = {f"threading.{name}" for name in ("Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore")}
_POLLS = {"select.poll", "select.epoll"}
_STREAM = re.compile(r"\bstd(?:in|out|err)\b")
_TIMED = re.compile(r"settimeout\((?!None\b)|setblocking\(False\)")
_TIMES = ("timeout", "timeout_s", "deadline_s")
_AT_ONCE = re.compile(r"NOBLOCK|DONTWAIT|WNOHANG|LOCK_NB|LOCK_UN")
# Names that stand for -1, and with those what waits for ever.
_C_ENDLESS = re.compile(r"\b(\w+)(?:\s*=\s*|\s+)\(?-\s*1\b")
_C_IN = r"(?:[^;{}()]|\((?:[^;{}()]|\([^;{}()]*\))*\))*?"  # arguments, and calls among them
_C_WAITS = (
    rf"\b(?:epoll_p?wait2?|poll|zmq_poll)\s*\({_C_IN},\s*(?:-\s*1|ENDLESS)\s*(?:,[^;{{}}()]*)?\)"
    r"|\b(?:pthread_cond_wait|sem_wait|pthread_join|sigwait)\s*\((?!\s*(?:pthread_\w+_t|sem_t))"
    rf"|\b(?:waitpid|zmq_(?:msg_)?(?:recv|send))\s*\({_C_IN},\s*0\s*\)|\bflock\s*\({_C_IN},\s*LOCK_(?:EX|SH)\s*\)"
)


@dataclass(frozen=True)
class Wait:
    """A wait without a deadline, over these lines of a file."""

    first: int
    last: int
    what: str


@dataclass(frozen=True)
class Excuse:
    """A comment that lets a wait stand."""

    path: str
    line: int
    kind: str
    why: str


class _Waits(ast.NodeVisitor):
    """Finds the waits of one module."""

    def __init__(self, index: Index, source: str, module: ast.Module) -> None:
        self.found: list[Wait] = []
        self._index = index
        self._imports = _imported(module)
        self._made = _makers(module, self._full_name)
        self._lines = source.encode().splitlines()
        self._owner = ""
        self._names: dict[str, str] = {}
        self._bounded = False
        self._not_blocking = False
        self._started: set[int] = set()
        self._statement: ast.stmt | None = None

    # ------------------------------------------------------------------------------------------------------- the walk

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            outer, self._statement = self._statement, node
            super().visit(node)
            self._statement = outer
        else:
            super().visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self._owner = self._owner, node.name
        self.generic_visit(node)
        self._owner = outer

    def visit_FunctionDef(self, node: Function) -> None:
        outer = self._names, self._bounded, self._not_blocking
        self._names = {**self._names, **self._index.names_in(node, self._owner)}
        self._bounded = False  # a time-out around a definition is not one around the call
        self._not_blocking = bool(_TIMED.search(self._text(node)))
        self.generic_visit(node)
        self._names, self._bounded, self._not_blocking = outer

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            if self._made_by(item.context_expr) & _LOCKS:
                self._note(node, f"with {self._text(item.context_expr)}", last=item.context_expr)
        self.generic_visit(node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        outer = self._bounded
        for item in node.items:
            self.visit(item.context_expr)
            call = item.context_expr
            if isinstance(call, ast.Call) and self._full_name(call.func) in _SCOPES:
                self._bounded = self._bounded or not self._is_endless(call.args[0] if call.args else None)
            elif not self._bounded and not self._is_own_context(call):
                self._note(node, f"async with {self._text(call)}", last=node.items[-1].context_expr)
        for statement in node.body:
            self.visit(statement)
        self._bounded = outer

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self._check_loop(node, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        if node.is_async:
            self._check_loop(node.iter, node.iter)
        self.generic_visit(node)

    def visit_Await(self, node: ast.Await) -> None:
        if not self._bounded and not self._is_bounded(node.value):
            self._note(node, f"await {self._text(node.value)}")
        if isinstance(node.value, ast.Call):
            self._started.add(id(node.value))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if self._full_name(node.func) in _STARTS:
            self._started |= {id(each) for argument in node.args for each in ast.walk(argument)}
        if id(node) not in self._started and self._blocks(node):
            self._note(node, self._text(node))
        self.generic_visit(node)

    # ------------------------------------------------------------------------------------------------------ the rules

    def _is_bounded(self, node: ast.expr) -> bool:
        """Whether awaiting this ends by itself, as far as can be told."""
        match node:
            case ast.Starred(value=ast.GeneratorExp(elt=inner) | ast.ListComp(elt=inner)):
                return self._is_bounded(inner)
            case ast.Call():
                name = self._full_name(node.func)
                if name in ("asyncio.wait_for", "asyncio.wait"):
                    return not self._is_endless(_argument(node, 1))
                if name == "asyncio.sleep":
                    return not self._is_endless(_argument(node, 0))
                if name in _PASSES:
                    return all(self._is_bounded(argument) for argument in node.args)
                if name.endswith(".enter_async_context"):
                    return self._is_own_context(node.args[0])
                return self._index.is_own(node, self._names) or self._is_given_time(node)
        return False

    def _is_given_time(self, call: ast.Call) -> bool:
        """Whether a deadline is among the arguments by its name, as our own conventions give them."""
        return any(word.arg in _TIMES and not self._is_endless(word.value) for word in call.keywords)

    def _is_endless(self, node: ast.expr | None) -> bool:
        """Whether this, given as a time, is none."""
        match node:
            case None | ast.Constant(value=None):
                return True
            case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str(text))]):
                return text.strip("+ ").lower().startswith("inf")
        return self._full_name(node) == "math.inf"

    def _is_own_context(self, node: ast.expr) -> bool:
        """Contexts of the tree (their code is checked), and the stack, which waits for those that entered it alone."""
        if isinstance(node, ast.Call) and (
            self._index.is_own(node, self._names) or self._full_name(node.func).endswith("AsyncExitStack")
        ):
            return True
        return self._index.has_coroutine(self._index.type_of(node, self._names), "__aexit__")

    def _check_loop(self, node: ast.AST, over: ast.expr) -> None:
        own = isinstance(over, ast.Call) and self._index.is_own(over, self._names)
        if not own and not self._bounded:
            of_class = self._index.has_coroutine(self._index.type_of(over, self._names), "__aiter__")
            if not of_class:
                self._note(node, f"async for … in {self._text(over)}", last=over)

    def _blocks(self, node: ast.Call) -> bool:
        name = self._full_name(node.func)
        if name in _CALLS:
            return self._is_endless(_argument(node, _CALLS[name]))
        if name in _DESCRIPTOR_CALLS:
            return self._may_block(node)
        if not isinstance(node.func, ast.Attribute):
            return False
        if self._index.type_of(node.func.value, self._names) in self._index.classes:
            return False  # a method of the tree's own
        return self._method_blocks(node, node.func, name)

    def _method_blocks(self, node: ast.Call, func: ast.Attribute, name: str) -> bool:
        method, made = func.attr, self._made_by(func.value)
        if method == "open" and "opener" in name:
            return self._is_endless(_argument(node, 2))
        if _STREAM.search(name) and method.startswith("read"):
            return True
        if method in _SOCKET or (method in _SOCKET_ONLY and made & _SOCKETS):
            return self._may_block(node)
        if (method == "poll" and made & _POLLS) or (method == "select" and _is_any(made, "selectors.")):
            given = _argument(node, 0)
            return self._is_endless(given) or ast.unparse(given or node) == "-1"
        if method == "result":
            return _is_any(made, "asyncio.run_coroutine_threadsafe", ".submit") and self._is_endless(_argument(node, 0))
        if method not in _METHODS or name.startswith("asyncio."):
            return False
        if method in ("join", "get", "acquire") and node.args:
            told = node.args[0]
            wants_to = isinstance(told, ast.Constant) and (told.value is None or told.value is True)
            return wants_to and self._waits(node, 0 if method == "join" else 1)
        return self._waits(node, _METHODS[method])

    def _waits(self, node: ast.Call, place: int) -> bool:
        """Whether a method that may be given its time, or told not to wait at all, is given neither."""
        told = next((word.value for word in node.keywords if word.arg in ("blocking", "block")), None)
        return self._is_endless(_argument(node, place)) and not (isinstance(told, ast.Constant) and not told.value)

    def _may_block(self, node: ast.Call) -> bool:
        return not _AT_ONCE.search(self._text(node)) and not self._not_blocking

    # ----------------------------------------------------------------------------------------------------- small help

    def _full_name(self, node: ast.expr) -> str:
        """What `_dotted` gives, through the module's imports."""
        first, dot, rest = _dotted(node).partition(".")
        return self._imports.get(first, first) + dot + rest

    def _made_by(self, node: ast.expr) -> set[str]:
        """What the value came from, by full names; empty when nobody says."""
        if isinstance(node, ast.Call):
            return {self._full_name(node.func)}
        return self._made.get(_dotted(node).rpartition(".")[2], set())

    def _note(self, node: ast.AST, what: str, last: ast.AST | None = None) -> None:
        assert isinstance(node, ast.stmt | ast.expr)
        end = getattr(last or node, "end_lineno", None) or node.lineno
        statement = self._statement
        first = node.lineno if statement is None or isinstance(statement, _COMPOUND) else statement.lineno
        if last is None and statement is not None and not isinstance(statement, _COMPOUND):
            end = max(end, statement.end_lineno or end)
        self.found.append(Wait(first, end, what))

    def _text(self, node: ast.stmt | ast.expr) -> str:
        """The source of a node on one line; offsets count bytes (ast.get_source_segment splits the file each time)."""
        assert node.end_lineno is not None
        lines = self._lines[node.lineno - 1 : node.end_lineno]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return " ".join(b" ".join(lines).decode().split())


_COMPOUND = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.With,
    ast.AsyncWith,
    ast.Try,
    ast.Match,
)


def _dotted(node: ast.expr) -> str:
    """`a.b.c` of names and attributes; a call within is passed over: `x().b` is `.b`."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{_dotted(value)}.{name}"
    return ""


def _argument(call: ast.Call, place: int | None) -> ast.expr | None:
    """The time-out that a call is given, by name or at its place."""
    for keyword in call.keywords:
        if keyword.arg in _TIMES or keyword.arg is None:
            return keyword.value
    return call.args[place] if place is not None and len(call.args) > place else None


def _is_any(names: set[str], *parts: str) -> bool:
    return any(part in name for name in names for part in parts)


def _imported(module: ast.Module) -> dict[str, str]:
    """The full names of what a module imports, by the names that it has there."""
    found: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _makers(module: ast.Module, full_name: Callable[[ast.expr], str]) -> dict[str, set[str]]:
    """What the names and attributes of a module are made by or annotated with, by their last part."""
    found: dict[str, set[str]] = {}

    def add(target: ast.expr | None, value: ast.expr | None) -> None:
        if target is not None and value is not None:
            found.setdefault(_dotted(target).rpartition(".")[2], set()).add(full_name(value))

    for node in ast.walk(module):
        match node:
            case ast.Assign(targets=targets, value=ast.Call(func=maker)):
                for target in targets:
                    add(target, maker)
            case ast.NamedExpr(target=target, value=ast.Call(func=maker)):
                add(target, maker)
            case ast.withitem(context_expr=ast.Call(func=maker), optional_vars=target):
                add(target, maker)
            case ast.AnnAssign(target=target, annotation=annotation):
                add(target, annotation)
            case ast.arg(arg=name, annotation=annotation):
                add(ast.Name(name), annotation)
    return found


def excuses(path: str, text: str) -> Iterator[Excuse]:
    """The comments of one file that let a wait stand."""
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _EXCUSE.search(line):
            yield Excuse(path, number, match["kind"], match["why"])


def c_waits(text: str) -> Iterator[Wait]:
    """The endless waits of a C or Cython source."""
    endless = "|".join(sorted(set(_C_ENDLESS.findall(text)))) or r"(?!)"
    for match in re.finditer(_C_WAITS.replace("ENDLESS", endless), text):
        first = text.count("\n", 0, match.start()) + 1
        yield Wait(first, first + match.group().count("\n"), " ".join(match.group().split()))


def _sources(root: Path, *suffixes: str) -> dict[Path, str]:
    found = {}
    for path in files(root, *suffixes):
        inside = path.relative_to(root).as_posix()
        if inside.startswith(tuple(f"{folder}/" for folder in CHECKED)) and not inside.startswith(SKIPPED):
            found[path.relative_to(root)] = path.read_text()
    return found


def examined(root: Path) -> tuple[list[str], list[Excuse]]:
    """What is wrong, and which comments let what stand."""
    python, compiled = _sources(root, ".py"), _sources(root, ".pyx", ".pxd", ".c", ".h")
    modules, wrong, used = {}, [], []
    for path, text in python.items():
        try:
            modules[path] = ast.parse(text)
        except SyntaxError as error:
            wrong.append(f"{path}:{error.lineno}: cannot be read: {error.msg}")
    index = Index.of(modules)
    for path, text in {**{path: python[path] for path in modules}, **compiled}.items():
        if path in modules:
            visitor = _Waits(index, text, modules[path])
            visitor.visit(modules[path])
            waits = visitor.found
        else:
            waits = list(c_waits(text))
        left = {excuse.line: excuse for excuse in excuses(path.as_posix(), text)}
        taken = set()
        for wait in waits:
            covering = [line for line in range(wait.first - 1, wait.last + 1) if line in left]
            taken |= set(covering)
            if not covering:
                wrong.append(f"{path}:{wait.first}: waits without a deadline: {wait.what}")
        used += [left[line] for line in sorted(taken)]
        if path in modules and path.parts[0] != "tools":
            wrong += [f"{path}:{line}: this comment covers no wait" for line in sorted(set(left) - taken)]
    return wrong, used


def problems(root: Path) -> list[str]:
    """Every wait that has no deadline and does not say why."""
    return examined(root)[0]


def main() -> None:
    """Prints the comments that let a wait stand."""
    for excuse in examined(Path(__file__).resolve().parents[2])[1]:
        sys.stdout.write(f"{excuse.path}:{excuse.line}: {excuse.kind}: {excuse.why}\n")


if __name__ == "__main__":
    main()
