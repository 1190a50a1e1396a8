"""
How fast the simulated world is, with the real runner, the store double and every invariant, beside a bare heap.

    python benchmarks/simulator.py

Two worlds: people who come through a working day and each use a session for two hours, and twenty sessions that are
held all day. The limit is what a bare `heapq` does with as many timers as the simulator ran callbacks, in the same run.
"""

import heapq
import json
import time

from moorage.simulator.report import Result
from moorage.simulator.run import run_scenario
from moorage.simulator.scenario import Burst, Poisson, Scenario, Stays, SystemScenario

SESSIONS_REACH = 100
TIMES_REAL_REACH = 10_000
HOUR = 3600.0


def busy_day() -> Scenario:
    """About a thousand sessions of two hours each on two systems."""
    return Scenario(
        name="busy-day",
        lasts=12 * HOUR,
        systems={"alpha": SystemScenario(nodes=400), "beta": SystemScenario(nodes=400)},  # type: ignore[dict-item]
        arrivals=(Poisson(kind="poisson", per_hour=100, lasts=10 * HOUR),),
        stays=Stays(median=2 * HOUR, spread=1.0, left_open=0.0),
    )


def twenty() -> Scenario:
    """Twenty sessions, used for two hours each."""
    return Scenario(
        name="twenty",
        lasts=3 * HOUR,
        systems={"alpha": SystemScenario(nodes=32)},  # type: ignore[dict-item]
        arrivals=(Burst(kind="burst", people=20),),
        stays=Stays(median=2 * HOUR, spread=1.0, left_open=0.0),
    )


def heap_s(timers: int) -> float:
    """CPU time of putting so many timers in a heap and taking them out, a hundred being in it at any time."""
    began = time.process_time()
    heap: list[tuple[int, int]] = []
    for number in range(timers):
        heapq.heappush(heap, (number * 7919 % 1_000_003, number))
        if len(heap) > 100:
            heapq.heappop(heap)
    return time.process_time() - began


def best(scenario: Scenario, runs: int) -> Result:
    """The quickest of some runs; each does the same work."""
    results = [run_scenario(scenario, seed=1, faults="none", keep_trace=False) for _ in range(runs)]
    for result in results:
        if result.broken is not None:
            raise SystemExit(f"{result.broken.invariant}: {result.broken.sentence}")
    assert len({result.digest for result in results}) == 1
    return min(results, key=lambda result: result.cpu_s)


def main() -> None:
    day, few = best(busy_day(), 5), best(twenty(), 5)
    sessions = day.ready / day.cpu_s
    times = few.virtual_s / few.real_s
    ratio = heap_s(day.callbacks) / day.cpu_s
    print(f"{'world':12}{'sessions':>10}{'virtual h':>11}{'CPU s':>8}{'callbacks':>11}{'checks':>9}")
    for result in (day, few):
        print(
            f"{result.scenario:12}{result.ready:10,}{result.virtual_s / HOUR:11.1f}{result.cpu_s:8.2f}"
            f"{result.callbacks:11,}{result.checked:9,}"
        )
    verdict = "ok" if sessions >= SESSIONS_REACH else "MISSED"
    print(f"two-hour sessions per CPU-second: {sessions:.0f}   reach: {SESSIONS_REACH}  {verdict}")
    verdict = "ok" if times >= TIMES_REAL_REACH else "MISSED"
    print(f"twenty sessions: {times:,.0f} times real time   reach: {TIMES_REAL_REACH:,}  {verdict}")
    print(f"a bare heap does the same number of events in {ratio:.1%} of the time")
    figures = {
        "sessions_per_cpu_s": round(sessions, 1),
        "virtual_to_real_20": round(times),
        "ratio_to_heap": round(ratio, 4),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
