"""
An asyncio event loop whose clock moves instead of waiting.

When nothing is ready, time jumps to the next timer: a year of quiet costs nothing, and the same program makes the same
steps at the same times. There is no selector, no socket and no thread behind it. It implements the public interface
`asyncio.AbstractEventLoop` (as far as tasks, timers and async generators need it), so asyncio's own tasks, locks,
timeouts and queues run on it unchanged.
"""

import asyncio
import contextvars
import heapq
import sys
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

Answer = TypeVar("Answer")
Context = contextvars.Context

if TYPE_CHECKING:
    # The type stubs call every method abstract; at run time those that are left out raise NotImplementedError.
    _Loop = Any
else:
    _Loop = asyncio.AbstractEventLoop


class Stalled(RuntimeError):
    """Nothing is ready, no timer runs, and the main task is not done: it would wait for ever."""


class Runaway(RuntimeError):
    """More callbacks ran than allowed, most likely in a circle that takes no time."""


class Refused(RuntimeError):
    """The program asked for something that virtual time cannot give: a thread, a socket, a process, a signal."""


class _Handle:
    """
    A callback and its context; what asyncio's own handles are, without what debugging needs.

    Ten callbacks run for every decision of a session, so that this is a third of the loop's time.
    """

    __slots__ = ("args", "callback", "context", "gone", "when_ms")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None, when_ms: int = 0
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = contextvars.copy_context() if context is None else context
        self.gone = False
        self.when_ms = when_ms

    def cancel(self) -> None:
        self.gone = True
        self.args = ()  # what they refer to is free from now on

    def cancelled(self) -> bool:
        return self.gone

    def when(self) -> float:
        return self.when_ms / 1000


class VirtualLoop(_Loop):  # type: ignore[misc]  # see above
    """
    Runs callbacks in the order in which they became ready; timers of the same instant in the order of their making.

    Time is in milliseconds, an integer, so that sums are exact; `time()` gives it in seconds as asyncio wants it.
    """

    def __init__(self) -> None:
        self.now_ms = 0
        self.callbacks = 0
        """How many callbacks have run: a measure of work that is the same everywhere."""
        self.most_callbacks: int | None = None
        """After so many it is a runaway."""
        self._ready: deque[_Handle] = deque()
        self._timers: list[tuple[int, int, _Handle]] = []
        self._numbers = 0
        self._tasks = 0
        self._stopping = False
        self._closed = False
        self._running = False
        self._asyncgens: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        self.failures: list[dict[str, Any]] = []
        """What nobody caught, as the exception handler got it."""

    # Time -------------------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now_ms / 1000

    def skip(self, milliseconds: int) -> None:
        """Time passes in which nothing runs, as if the machine were suspended; then everything due comes at once."""
        self.now_ms += milliseconds

    # Callbacks --------------------------------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> _Handle:
        handle = _Handle(callback, args, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Handle:
        return self.call_at_ms(self.now_ms + max(0, round(delay * 1000)), callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Handle:
        return self.call_at_ms(round(when * 1000), callback, *args, context=context)

    def call_at_ms(
        self, when: int, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Handle:
        """Like `call_at`, at an exact instant."""
        timer = _Handle(callback, args, context, when)
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, timer))
        return timer

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Handle:
        raise Refused("there is one thread; something asked to be called from another one")

    # Tasks and futures ------------------------------------------------------------------------------------------------

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(  # later versions of Python add arguments, which the task takes or not
        self, coro: Generator[Any, None, Answer] | Coroutine[Any, Any, Answer], **options: Any
    ) -> "asyncio.Task[Answer]":
        self._tasks += 1
        # A name by number would need a counter of the whole process; ours starts anew with every loop.
        options.setdefault("name", f"task-{self._tasks}")
        return asyncio.Task(coro, loop=self, **options)

    # Running ----------------------------------------------------------------------------------------------------------

    def run_until_complete(self, future: Any) -> Any:
        main = asyncio.ensure_future(future, loop=self)
        main.add_done_callback(self._main_done)
        try:
            self.run_forever()
        finally:
            main.remove_done_callback(self._main_done)
        if not main.done():
            raise Stalled("nothing is ready and no timer runs, but the main task is not done")
        return main.result()

    def _main_done(self, _future: Any) -> None:
        self.stop()

    def run_forever(self) -> None:
        self._check_closed()
        if self._running or asyncio._get_running_loop() is not None:
            raise RuntimeError("a loop is running already")
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._asyncgens.add, finalizer=self._finalize)
        asyncio._set_running_loop(self)
        self._running, self._stopping = True, False
        try:
            self._run()
        finally:
            self._running = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _run(self) -> None:
        ready, timers = self._ready, self._timers
        while not self._stopping:
            if not ready:
                while timers and timers[0][2].gone:
                    heapq.heappop(timers)
                if not timers:
                    return
                if timers[0][0] > self.now_ms:
                    self.now_ms = timers[0][0]
            now = self.now_ms
            while timers and timers[0][0] <= now:
                ready.append(heapq.heappop(timers)[2])
            if self.most_callbacks is not None and self.callbacks > self.most_callbacks:
                raise Runaway(f"{self.callbacks} callbacks by {now / 1000:.3f} s")
            # Only what is ready now: what it makes ready comes after timers that are due by then.
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle.gone:
                    self.callbacks += 1
                    try:
                        handle.context.run(handle.callback, *handle.args)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:  # noqa: BLE001 (as asyncio does: a callback's error is nobody's)
                        self.call_exception_handler({"message": f"{handle.callback!r} failed", "exception": error})

    def stop(self) -> None:
        self._stopping = True

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        if self._running:
            raise RuntimeError("a running loop is not closed")
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def _check_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the loop is closed")

    # Async generators -------------------------------------------------------------------------------------------------

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._closed:
            self.create_task(generator.aclose())

    async def shutdown_asyncgens(self) -> None:
        generators = list(self._asyncgens)
        self._asyncgens.clear()
        for generator in generators:
            await generator.aclose()

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""

    # Errors and debugging ---------------------------------------------------------------------------------------------

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """Debugging measures real time; there is none here."""

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            self.failures.append(context)

    # What there is not ------------------------------------------------------------------------------------------------

    def run_in_executor(self, *_args: Any, **_options: Any) -> NoReturn:
        raise Refused("there are no threads in virtual time; nothing may run in an executor")


@contextmanager
def virtual_loop(loop: VirtualLoop | None = None) -> Iterator[VirtualLoop]:
    """A loop that is empty and closed afterwards: tasks that are still there are cancelled, generators closed."""
    loop = loop or VirtualLoop()
    try:
        yield loop
    finally:
        try:
            if not loop.is_closed():
                _cancel_all(loop)
                with suppress(Stalled):
                    loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


def _cancel_all(loop: VirtualLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    # A set of tasks has another order in every run; their names have not.
    for task in sorted(tasks, key=lambda task: (len(task.get_name()), task.get_name())):
        task.cancel()
    loop.most_callbacks = None
    if tasks:
        with suppress(Stalled):
            loop.run_until_complete(asyncio.wait(tasks, timeout=60))


def run(main: Coroutine[Any, Any, Answer], loop: VirtualLoop | None = None) -> Answer:
    """The result of `main`, run to its end in virtual time."""
    with virtual_loop() as own:
        result: Answer = (loop or own).run_until_complete(main)
        return result
