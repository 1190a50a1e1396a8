"""The table of states in docs/slurm.md is the one in the code."""

import re
from collections.abc import Mapping
from pathlib import Path

from moorage.adapters.ssh.translate import EVIDENCE
from moorage.core.model import DoubtReason, EndReason, Phase

PAGE = Path(__file__).parents[4] / "docs" / "slurm.md"
ROWS: Mapping[str, Phase | EndReason | DoubtReason] = {
    "waits in the queue": Phase.PENDING,
    "runs": Phase.RUNNING,
    "is ending": Phase.ENDING,
    "over: finished": EndReason.FINISHED,
    "over: failed": EndReason.FAILED,
    "over: cancelled": EndReason.CANCELLED,
    "over: walltime": EndReason.WALLTIME,
    "over: preempted": EndReason.PREEMPTED,
    "over: node failed": EndReason.NODE_FAILED,
    "over: out of memory": EndReason.OUT_OF_MEMORY,
    "nothing known": DoubtReason.STALE,
}


def test_the_table_of_states_is_the_one_in_the_code() -> None:
    told = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for beginning, evidence in ROWS.items():
            if len(cells) == 2 and re.match(rf"{beginning}\b", cells[0]):
                told.update(dict.fromkeys(re.findall("`([A-Z_]+)`", cells[1]), evidence))
    assert told == EVIDENCE
