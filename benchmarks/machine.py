"""
How fast the machine steps, beside a bare loop of `attrs.evolve` on the same session class in the same run.

    python benchmarks/machine.py

The mix is a realistic one: lives of sessions from wish to end, with readings that say nothing new, failed calls,
repairs and requeues in the shares that a busy day has; the same for every run.
"""

import json
import random
import sys
import time
from pathlib import Path

from attrs import evolve

sys.path.insert(0, str(Path(__file__).parents[1]))  # the programs are those of the tests
from tests.property.alphabet import run

from moorage.core.events import Event
from moorage.core.machine import step
from moorage.core.model import Instant, Session

LIVES = 400
LEAST_S = 2.0
ROUNDS = 3
REACH = 100_000


def recorded() -> list[tuple[Session, Event, Instant]]:
    """Every step of some hundred lives: what the machine was handed."""
    steps = []
    for seed in range(LIVES):
        numbers = random.Random(seed)
        # Mostly kind worlds (0 to 2 of 5), few failures and arbitrary events: see `alphabet.run`.
        program = [numbers.randrange(1 << 30) * 5 + numbers.choices(range(5), (50, 30, 12, 5, 3))[0] for _ in range(60)]
        steps += [(before, event, now) for before, event, now, _ in run(program)]
    return steps


def per_cpu_second(work: list[tuple[Session, Event, Instant]], *, bare: bool) -> float:
    count, began = 0, time.process_time()
    while time.process_time() - began < LEAST_S:
        if bare:
            for session, _, _ in work:
                evolve(session, serial=session.serial + 1)
        else:
            for session, event, now in work:
                step(session, event, now)
        count += len(work)
    return count / (time.process_time() - began)


def main() -> None:
    work = recorded()
    changed = sum(step(session, event, now).session is not session for session, event, now in work)
    # In turn, and the best of some rounds: what a busy machine takes away is nobody's speed.
    rounds = [(per_cpu_second(work, bare=True), per_cpu_second(work, bare=False)) for _ in range(ROUNDS)]
    evolves, steps = (max(each) for each in zip(*rounds, strict=True))
    print(f"{len(work)} different steps of {LIVES} lives; {changed / len(work):.0%} change something")
    print(f"{'':24}{'per CPU-second':>16}")
    print(f"{'machine steps':24}{steps:16,.0f}   reach: {REACH:,}  {'ok' if steps >= REACH else 'MISSED'}")
    print(f"{'attrs.evolve':24}{evolves:16,.0f}")
    print(json.dumps({"steps_per_cpu_s": round(steps), "ratio_to_evolve": round(steps / evolves, 3)}))


if __name__ == "__main__":
    main()
