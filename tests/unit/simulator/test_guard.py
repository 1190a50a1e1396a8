"""Nothing of the outside gets into a run: what the guard refuses while one goes on, and what no file may import."""

import ast
import asyncio
import datetime
import logging
import os
import random
import secrets
import select
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moorage.simulator.choices import Seeded
from moorage.simulator.guard import WAYS_IN, Leak, guarded
from moorage.simulator.invariants import Broken
from moorage.simulator.loop import Refused, Runaway, Stalled, VirtualLoop, virtual_loop
from moorage.simulator.loop import run as run_virtually
from moorage.simulator.world import World

SOURCE = Path(__file__).parents[3] / "src" / "moorage"

WAYS: dict[str, Callable[[], object]] = {
    "a thread": lambda: threading.Thread(target=print).start(),
    "a socket": lambda: socket.socket(),
    "the network": lambda: socket.getaddrinfo("localhost", 80),
    "a process": lambda: subprocess.run(["true"], check=True),
    "a fork": lambda: os.fork(),
    "a selector": lambda: select.select([], [], [], 0),
    "the wall clock": lambda: time.time(),
    "the monotonic clock": lambda: time.monotonic(),
    "a real sleep": lambda: time.sleep(0),
    "the time zone": lambda: time.localtime(),
    "the calendar": lambda: datetime.datetime.now(tz=datetime.UTC),
    "today": lambda: datetime.datetime.today(),  # noqa: DTZ002 (that is the point)
    "unseeded chance": lambda: random.random(),
    "an unseeded shuffle": lambda: random.shuffle([1, 2]),
    "the kernel's chance": lambda: os.urandom(1),
    "a random name": lambda: uuid.uuid4(),
    "a secret": lambda: secrets.token_hex(),
}


@pytest.mark.parametrize("what", WAYS)
def test_the_guard_refuses(what: str) -> None:
    with guarded(), pytest.raises(Leak):
        WAYS[what]()


def test_afterwards_everything_is_as_it_was() -> None:
    before = [getattr(place, name, None) for place, name, _ in WAYS_IN]
    with guarded():
        with guarded():
            pass
        with pytest.raises(Leak):
            time.time()
    assert [getattr(place, name, None) for place, name, _ in WAYS_IN] == before
    assert datetime.datetime.now(tz=datetime.UTC).timestamp() - time.time() < 60


def test_other_threads_and_the_time_in_a_log_record_are_none_of_its_business(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[float] = []
    ready, go = threading.Event(), threading.Event()

    def look() -> None:
        ready.set()
        go.wait(10)
        seen.append(time.monotonic())

    other = threading.Thread(target=look)
    other.start()
    ready.wait(10)
    with guarded():
        go.set()
        other.join(10)
        logging.getLogger("moorage.test").warning("a record has a time of its own")
    assert len(seen) == 1
    assert "a record has" in caplog.text


@pytest.mark.parametrize("what", ["the wall clock", "unseeded chance", "a socket"])
def test_what_a_world_lets_slip_in_is_a_broken_run(what: str) -> None:
    """A line that reads the clock is found by the first run that passes it."""

    async def slip() -> None:
        WAYS[what]()

    world = World(Seeded(1))
    broken = world.run([slip()], 60_000)
    assert isinstance(broken, Broken)
    assert "Leak" in broken.sentence


# The loop -------------------------------------------------------------------------------------------------------------


def test_the_loop_has_no_threads_and_no_network() -> None:
    async def executor() -> None:
        await asyncio.get_running_loop().run_in_executor(None, print)

    async def from_elsewhere() -> None:
        asyncio.get_running_loop().call_soon_threadsafe(print)

    async def connect() -> None:
        await asyncio.get_running_loop().create_connection(asyncio.Protocol, "localhost", 1)

    with virtual_loop() as loop, pytest.raises(Refused, match="threads"):
        loop.run_until_complete(executor())
    with virtual_loop() as loop, pytest.raises(Refused, match="thread"):
        loop.run_until_complete(from_elsewhere())
    with virtual_loop() as loop, pytest.raises(NotImplementedError):
        loop.run_until_complete(connect())


def test_a_year_costs_nothing_and_is_exact() -> None:
    async def year() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for _ in range(365):
            await asyncio.sleep(86_400)
        return loop.now_ms

    began = time.process_time()
    assert run_virtually(year()) == 365 * 86_400_000
    assert time.process_time() - began < 5


def test_a_program_that_waits_for_nothing_is_stalled_and_one_in_a_circle_is_a_runaway() -> None:
    async def waits() -> None:
        await asyncio.get_running_loop().create_future()

    async def circle() -> None:
        for _ in range(10_000):
            await asyncio.sleep(0)

    with virtual_loop() as loop, pytest.raises(Stalled):
        loop.run_until_complete(waits())
    with virtual_loop() as loop:
        loop.most_callbacks = 1_000
        with pytest.raises(Runaway):
            loop.run_until_complete(circle())


# What no file of a run may import, and no order of a set --------------------------------------------------------------

OUTSIDE = {
    "aiohttp",
    "concurrent",
    "datetime",
    "httpx",
    "locale",
    "multiprocessing",
    "os",
    "platform",
    "queue",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
}
MAY = {
    "simulator/choices.py": {"random"},  # generators with a seed
    "simulator/guard.py": OUTSIDE,  # what it closes
    "simulator/run.py": {"time"},  # how long a run really took, for people
}
"""Modules that let the outside in, and who may import them for a reason."""

FILES = sorted(
    path
    for path in [
        *(SOURCE / name for name in ("runner.py", "performing.py", "observing.py")),
        *(SOURCE / "core").glob("*.py"),
        *(SOURCE / "ports").glob("*.py"),
        *(SOURCE / "simulator").glob("*.py"),
    ]
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_file_of_a_run_imports_the_outside(path: Path) -> None:
    found = {name.split(".")[0] for name in _imports(ast.parse(path.read_text("utf-8")))}
    assert found & OUTSIDE <= MAY.get(path.relative_to(SOURCE).as_posix(), set())


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_file_of_a_run_depends_on_the_order_of_a_set(path: Path) -> None:
    assert list(_over_sets(path.read_text("utf-8"))) == []


SLIPS = (
    "for each in {1, 2}: print(each)",
    "busy = set()\nfor each in busy: print(each)",
    "def f(busy: set[str]) -> list[str]:\n    return list(busy)",
    "class A:\n    def __init__(self):\n        self.waiting: set[str] = set()\n    def f(self):\n"
    "        return [each for each in self.waiting - {'x'}]",
    "a = {1} | {2}\nb = tuple(a)",
    "def names() -> set[str]: ...\nfor each in names(): print(each)",
    "a = frozenset('abc')\nfirst = next(iter(a))",
)
FINE = (
    "busy = {1, 2}\nfor each in sorted(busy): print(each)",
    "busy = {1, 2}\nmore = {each + 1 for each in busy}\nassert any(each > 1 for each in busy)",
    "names = {'a': 1}\nfor each in names: print(each)",
    "busy = set()\nprint(len(busy), 3 in busy, max(busy))",
)


@pytest.mark.parametrize("text", SLIPS)
def test_the_order_of_a_set_is_seen(text: str) -> None:
    assert list(_over_sets(text))


@pytest.mark.parametrize("text", FINE)
def test_what_depends_on_no_order_is_fine(text: str) -> None:
    assert list(_over_sets(text)) == []


ORDERLESS = {"sorted", "len", "min", "max", "any", "all", "sum", "set", "frozenset"}
IN_ORDER = {"list", "tuple", "iter", "enumerate", "zip", "map", "filter", "fromkeys", "join", "extend", "deque"}


Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef


def _over_sets(text: str) -> Iterator[str]:
    """Lines of a file that go over a set in its own order, as far as names and annotations tell."""
    tree = ast.parse(text)
    everywhere = {name for name in _sets_of(tree, set()) if "." in name or name.endswith("()")}
    everywhere |= {name for name in map(_name, _top_targets(tree)) if name in _sets_of(tree, set())}
    for scope in ast.walk(tree):
        if isinstance(scope, Scope):
            names = everywhere | _sets_of(scope, everywhere)
            yield from (
                f"line {each.lineno}: {ast.unparse(each)}" for each in _gone_over(scope) if _is_set(each, names)
            )


def _top_targets(tree: ast.Module) -> Iterator[ast.expr]:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from node.targets
        elif isinstance(node, ast.AnnAssign):
            yield node.target


def _within(scope: Scope) -> Iterator[ast.AST]:
    """The nodes of a scope, without those of functions in it; the arguments are its own."""
    waiting: list[ast.AST] = [*scope.body]
    if not isinstance(scope, ast.Module):
        waiting.append(scope.args)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)


def _gone_over(scope: Scope) -> Iterator[ast.expr]:
    """Everything that is gone over one by one, where the order can matter."""
    nodes = list(_within(scope))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    harmless = {id(argument) for call in calls if _called(call) in ORDERLESS for argument in call.args}
    for node in nodes:
        if isinstance(node, ast.For | ast.AsyncFor):
            yield node.iter
        elif isinstance(node, ast.ListComp | ast.DictComp | ast.GeneratorExp) and id(node) not in harmless:
            yield from (each.iter for each in node.generators)
        elif isinstance(node, ast.Call) and _called(node) in IN_ORDER and id(node) not in harmless:
            yield from node.args
        elif isinstance(node, ast.Starred):
            yield node.value


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _sets_of(scope: Scope, known: set[str]) -> set[str]:
    """Variables, attributes (`.name`) and functions (`name()`) that are sets, by their annotation or first value."""
    names = set(known)
    nodes = list(ast.walk(scope)) if isinstance(scope, ast.Module) else list(_within(scope))
    for node in nodes:
        match node:
            case ast.AnnAssign(target=target, annotation=note) if _says_set(note):
                names.add(_name(target))
            case ast.arg(arg=name, annotation=note) if note is not None and _says_set(note):
                names.add(name)
            case ast.FunctionDef(name=name, returns=note) if note is not None and _says_set(note):
                names.add(f"{name}()")
            case ast.Assign(targets=[target], value=value) if _is_set(value, names):
                names.add(_name(target))
    return names - {""}


def _says_set(note: ast.expr) -> bool:
    return ast.unparse(note).split("[")[0] in ("set", "frozenset", "Set", "AbstractSet")


def _name(node: ast.expr) -> str:
    return f".{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _is_set(node: ast.expr, names: set[str]) -> bool:
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Call():
            return _called(node) in ("set", "frozenset") or f"{_called(node)}()" in names
        case ast.BinOp(left=left, op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor(), right=right):
            return _is_set(left, names) or _is_set(right, names)
        case ast.Name() | ast.Attribute():
            return _name(node) in names
        case _:
            return False
