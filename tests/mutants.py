"""
Which bugs would the core's tests not notice? `python tests/mutants.py [PATTERN...]` makes thousands and counts.

The mutants are mutmut's; see docs/mutants.md. What mutmut does anew for each of them, start pytest and collect the
tests, is done once here: a process in which the tests are collected forks for every mutant, and the child runs those
tests that call the changed function, until one fails. What is called while modules are imported has to be changed
before that, so what survives of it is tried once more, in a pytest of its own. All happens in a copy of the source.

A pattern is a module of the core or a mutant's name with wildcards: `machine`, `plan.x__word__*`. The exit code is 0
however many mutants survive: which of them cannot be told from the original, only people can say.
"""

import argparse
import difflib
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from fnmatch import fnmatch
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

import pytest
from mutmut.mutation.file_mutation import MutatedFile, mutate_file_contents
from mutmut.state import state

HERE = Path(__file__).parent.parent
CORE = "moorage.core"
QUIET = ["-q", "-x", "-p", "no:cacheprovider", "--capture=no", "--tb=no"]
MEMORY = 4 << 30  # bytes: a mutant that collects without end fails before it hurts the machine
SPARE_S = 10  # seconds of processor time more than the tests take without a mutant: a mutant may be slow
NO_USE = "The tests fail without a mutant, so that they fail with one says nothing."


def main() -> None:
    asked, out = _arguments(), sys.stdout
    with tempfile.TemporaryDirectory(prefix="moorage-mutants-") as copy:
        files = _copied_to(Path(copy))
        everything = [f"{module}.{name}" for module, file in files.items() for name in file.mutant_names]
        mutants = [name for name in everything if _matches(name, asked.patterns)]
        survivors = _survivors(mutants, asked.tests, asked.jobs, lambda name: _say(out, _change(name, files)))
    _say(out, _table(mutants, survivors))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).strip().splitlines()[0])
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="which mutants; all if there is none")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    parser.add_argument("--tests", nargs="+", default=["tests/unit/core"], metavar="PATH")
    return parser.parse_args()


def _say(out: TextIO, text: str) -> None:
    out.write(text + "\n")
    out.flush()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch(name, each) or _module(name) == each for each in patterns)


def _copied_to(copy: Path) -> dict[str, MutatedFile]:
    """From here on this process works in a copy, where each module of the core holds its mutants, all inactive."""
    for part in ("src", "tests"):
        shutil.copytree(HERE / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "pyproject.toml", copy)
    os.chdir(copy)
    sys.path[0] = os.environ["PYTHONPATH"] = str(copy / "src")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with all their mutants, modules take long to compile
    sys.dont_write_bytecode = False
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(copy)
    files = {}
    for path in sorted((copy / "src/moorage/core").glob("*.py")):
        files[path.stem] = mutate_file_contents(str(path), path.read_text())
        path.write_text(files[path.stem].code)
    return files


def _module(mutant: str) -> str:
    return mutant.partition(".")[0]


def _function(mutant: str) -> str:
    return mutant.rpartition("__mutmut_")[0]


def _change(mutant: str, files: Mapping[str, MutatedFile]) -> str:
    """The mutant's name and the lines that it changes."""
    module, _, name = mutant.partition(".")
    file, function = files[module], _function(name)
    lines = file.code.splitlines()

    def text(variant: str) -> list[str]:
        span = file.line_span_by_function_name[variant]
        return [line.replace(variant, function) for line in lines[span.start - 1 : span.end]]

    changed = difflib.ndiff(text(f"{function}__mutmut_orig"), text(name))
    return "\n".join([mutant, *(f"  {line}" for line in changed if line[0] in "-+")])


def _table(mutants: Iterable[str], survivors: Iterable[str]) -> str:
    made, left = Counter(map(_module, mutants)), Counter(map(_module, survivors))
    rows = [(module, made[module], left[module]) for module in sorted(made)] + [("in all", made.total(), left.total())]
    return "\n".join(f"{module:12} {n:6,} mutants {n - lost:6,} found {lost:4,} not found" for module, n, lost in rows)


# Running --------------------------------------------------------------------------------------------------------------


def _survivors(mutants: Sequence[str], tests: Sequence[str], jobs: int, tell: Callable[[str], None]) -> list[str]:
    """The mutants that no test fails for; `tell` hears of each as soon as that is certain."""
    calls = _Calls(Path("calls.json"))
    _, status, used = os.wait4(_forked("stats", lambda _: _pass(tests, calls), 600), 0)
    if status:
        sys.exit(NO_USE)
    imported, by_function = calls.noted()
    limit_s = int(used.ru_utime) + SPARE_S
    first = _Trial(jobs, limit_s, lambda name: None if _function(name) in imported else tell(name))
    if not _pass(tests, _InsteadOfTests(first, mutants, by_function)):
        sys.exit(NO_USE)
    # What these change was called before they were active; everything is imported in this process already.
    again = _Trial(jobs, limit_s, tell)
    again.each([name for name in first.survivors if _function(name) in imported], lambda _: _pass_anew(tests))
    return [name for name in first.survivors if _function(name) not in imported or name in again.survivors]


def _pass(tests: Sequence[str], *plugins: object) -> bool:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        return pytest.main([*QUIET, *tests], plugins=plugins) == 0


def _pass_anew(tests: Sequence[str]) -> bool:
    return subprocess.run([sys.executable, "-m", "pytest", *QUIET, *tests]).returncode == 0


class _Trial:
    """Mutants in processes of their own, at most `jobs` at a time, each for at most `limit_s` of processor time."""

    def __init__(self, jobs: int, limit_s: int, tell: Callable[[str], None]) -> None:
        self.jobs, self.limit_s, self.tell = jobs, limit_s, tell
        self.survivors: list[str] = []
        self.running: dict[int, str] = {}

    def each(self, mutants: Iterable[str], good: Callable[[str], bool]) -> None:
        """A mutant survives if `good` is true, in time, while it is active. Everything else is a failure of its own."""
        try:
            for mutant in mutants:
                if len(self.running) == self.jobs:
                    self._one_ends()
                self.running[_forked(mutant, good, self.limit_s)] = mutant
            while self.running:
                self._one_ends()
        finally:
            for pid in self.running:
                _end(pid)

    def _one_ends(self) -> None:
        pid, status = os.wait()
        _end(pid)
        mutant = self.running.pop(pid)
        if status == 0:
            self.survivors.append(mutant)
            self.tell(mutant)


def _forked(mutant: str, good: Callable[[str], bool], limit_s: int) -> int:
    """A child's process id. Its exit code is 0 if `good` is true of the mutant, with that mutant active."""
    pid = os.fork()
    if pid:
        return pid
    code = 1  # stays if something gets past even pytest
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(5 * limit_s)  # it may also wait for ever
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        # mutmut's functions look there whether to call a mutant, or to note that they are called.
        os.environ["MUTANT_UNDER_TEST"] = mutant if mutant == "stats" else f"{CORE}.{mutant}"
        code = 0 if good(mutant) else 1
    finally:
        os._exit(code)


def _end(pid: int) -> None:
    """Also of what a test of the child has started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


class _Calls:
    """A plugin for pytest: notes what is called before all tests, and which tests call it later, the quickest first."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.imported: list[str] = []
        self.tests: dict[str, list[str]] = {}
        self.took_s: defaultdict[str, float] = defaultdict(float)

    def noted(self) -> tuple[list[str], dict[str, list[str]]]:
        imported, tests = json.loads(self.file.read_text())
        return imported, tests

    def pytest_collection_finish(self) -> None:
        self.imported = self._called()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        for function in self._called():
            self.tests.setdefault(function, []).append(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.took_s[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        for tests in self.tests.values():
            tests.sort(key=self.took_s.__getitem__)
        self.file.write_text(json.dumps([self.imported, self.tests]))

    def _called(self) -> list[str]:
        called = sorted(name.removeprefix(f"{CORE}.") for name in state()._stats)
        state()._stats.clear()
        return called


class _InsteadOfTests:
    """A plugin for pytest that runs, when everything is collected, the mutants."""

    def __init__(self, trial: _Trial, mutants: Sequence[str], calls: Mapping[str, list[str]]) -> None:
        self.trial, self.mutants, self.calls = trial, mutants, calls

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        gc.collect()
        gc.freeze()  # what is here now no child has to look at, and so to copy
        if os.waitpid(_forked("none", lambda _: _run(session.items), self.trial.limit_s), 0)[1]:
            pytest.exit("the tests fail in a process that was forked for them", returncode=1)
        self.trial.each(self.mutants, lambda each: _run([items[test] for test in self.calls.get(_function(each), ())]))
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os._exit(1)


def _run(tests: Sequence[pytest.Item]) -> bool:
    for test, following in zip_longest(tests, tests[1:]):
        test.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
    return True  # at the first failure the process has ended


if __name__ == "__main__":
    main()
