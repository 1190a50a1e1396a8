"""Jobs that only pass time: what they would have left behind is written when their time is over."""

import itertools
from collections.abc import Callable

from attrs import frozen

from .clock import Clock
from .execution import Work
from .script import exit_code_file


@frozen
class Outcome:
    """How a virtual job goes. `exit_code` None leaves no exit code file, like a job killed from outside."""

    runtime_s: float
    exit_code: int | None = 0
    stdout: str = ""
    stderr: str = ""


class VirtualRunner:
    """
    Runs nothing. A job says itself how it goes, in its environment: `SIM_RUNTIME_S`, `SIM_EXIT_CODE`,
    `SIM_STDOUT`; or `decide` says it.
    """

    def __init__(self, clock: Clock, runtime_s: float, decide: Callable[[Work], Outcome] | None = None) -> None:
        self._clock = clock
        self._runtime_s = runtime_s
        self._decide = decide or self._from_environment
        self._pids = itertools.count(4_711)

    async def run(self, work: Work, started: Callable[[int], None], clean: bool) -> None:
        outcome = self._decide(work)
        (work.directory / work.stdout).write_text(outcome.stdout)
        (work.directory / work.stderr).write_text(outcome.stderr)
        (work.directory / exit_code_file).unlink(missing_ok=True)
        started(next(self._pids))
        await self._clock.sleep(outcome.runtime_s)
        if outcome.exit_code is not None:
            (work.directory / exit_code_file).write_text(f"{outcome.exit_code}\n")

    async def go_on(self, work: Work, clean: bool) -> None:
        """Nothing of it is there: a site whose jobs only pass time keeps none."""

    def _from_environment(self, work: Work) -> Outcome:
        said = dict(work.variables)
        try:
            runtime_s = float(said.get("SIM_RUNTIME_S", self._runtime_s))
            exit_code = int(said.get("SIM_EXIT_CODE", "0"))
        except ValueError:
            return Outcome(0.0, 2, stderr="SIM_RUNTIME_S and SIM_EXIT_CODE are numbers\n")
        return Outcome(max(0.0, runtime_s), exit_code, said.get("SIM_STDOUT", ""))
