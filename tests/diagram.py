"""
The state diagram of a session, drawn from what the machine does: `python -m tests.diagram` prints it as Mermaid.

Some thousand fixed programs of events are run and every change of state is noted with the events that led to it. The
diagram in ARCHITECTURE.md is this output; `tests/test_architecture.py` compares them.
"""

import random
from collections import Counter
from typing import get_args

from tests.property.alphabet import run

from moorage.core.model import State

PROGRAMS = 3_000
LABELS = 3
ORDER = [state.__name__ for state in get_args(State)]


def transitions() -> dict[tuple[str, str], Counter[str]]:
    """From state to state: how often which event led there."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for seed in range(PROGRAMS):
        numbers = random.Random(seed)
        for before, event, _, decision in run([numbers.randrange(1 << 40) for _ in range(140)]):
            edge = type(before.state).__name__, type(decision.session.state).__name__
            if edge[0] != edge[1]:
                found.setdefault(edge, Counter())[type(event).__name__] += 1
    return found


def mermaid() -> str:
    """The diagram; every state may go to `Stopping`, which is one line and not eight."""
    lines = ["stateDiagram-v2", "    [*] --> Waiting"]
    found = transitions()
    for edge in sorted(found, key=lambda edge: (ORDER.index(edge[0]), ORDER.index(edge[1]))):
        if edge[1] not in ("Stopping", "Ended") or edge == ("Stopping", "Ended"):
            names = sorted(found[edge])
            label = ", ".join(names[:LABELS]) + (", …" if len(names) > LABELS else "")
            lines.append(f"    {edge[0]} --> {edge[1]} : {label}")
    away = [state for state in ORDER if (state, "Stopping") in found]
    at_once = [state for state in ORDER[:-2] if (state, "Ended") in found]
    lines.append("    Ended --> [*]")
    lines.append(f"    note right of Stopping : from {', '.join(away)}")
    lines.append(f"    note right of Ended : at once, if nothing is left, from {', '.join(at_once)}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(mermaid())  # noqa: T201 (this is what it is for)
