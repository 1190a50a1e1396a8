"""Every duration of the machine and the runner in one table of data, overridable per system."""

from collections.abc import Mapping

import attrs
from attrs import field, frozen, validators

_positive = [validators.instance_of((int, float)), validators.gt(0)]


def _seconds(default: float, meaning: str) -> float:
    """A duration with its default; the meaning travels with the field into the JSON Schema."""
    return field(default=default, validator=_positive, metadata={"doc": meaning})  # type: ignore[arg-type]  # the list is and_()


@frozen
class Timeouts:
    """
    Durations in seconds. A session keeps the table it started with (configuration changes are atomic).

    Source of the defaults: design section 9; what is not there says its reason in its line.
    """

    connect_s: float = _seconds(10, "setting up a connection to a system")
    call_s: float = _seconds(30, "one call to a system, in all")
    submit_s: float = _seconds(120, "a submit call, in all")
    horizon_s: float = _seconds(30, "after this time a job created on the system shows up in a complete lookup")
    confirm_s: float = _seconds(5, "between two readings that must agree before a job counts as gone")
    lookup_s: float = _seconds(10, "between two lookups by tag while an answer is missing")
    admission_s: float = _seconds(600, "a launcher that nobody admits ends by itself after this time")
    waiting_s: float = _seconds(86_400, "a session that is not admitted for so long ends")
    queued_s: float = _seconds(1_209_600, "a job that stays in the queue for so long is given up; two weeks")
    boot_s: float = _seconds(600, "from the job running to the launcher reporting its endpoint")
    connecting_s: float = _seconds(300, "from the endpoint known to the first good probe")
    probe_s: float = _seconds(5, "one probe through the path, in all")
    probe_fresh_s: float = _seconds(10, "the paths of all sessions are checked this often")
    probe_ready_s: float = _seconds(3_600, "between probes of a ready session besides those checks, lest they deceive")
    probe_stale_s: float = _seconds(60, "a path without a good probe for so long is in doubt")
    tunnel_close_s: float = _seconds(10, "closing a tunnel")
    stop_s: float = _seconds(120, "from stop to ended once the world is healthy")
    cleanup_s: float = _seconds(300, "nothing of an ended session is left after this time")
    readopt_s: float = _seconds(15, "sessions are ready again after a restart of the Hub")
    fairness_s: float = _seconds(60, "each session with pending work is looked at this often")
    auth_pause_s: float = _seconds(900, "a host is left alone for so long after an authentication failure")
    status_first_s: float = _seconds(0.25, "between status calls for a session that has just changed its state")
    status_starting_s: float = _seconds(5, "between status calls while a session starts or stops")
    status_queued_s: float = _seconds(30, "between status calls while jobs only wait in the queue")
    status_ready_s: float = _seconds(300, "between status calls while all paths are good")
    sweep_s: float = _seconds(300, "from a change to a comparison of the system's jobs with the store")
    sweep_quiet_s: float = _seconds(3_600, "between two such comparisons for people with whom nothing has changed")
    stray_grace_s: float = _seconds(600, "a job with our tag that no session knows is kept this long")
    repair_s: float = _seconds(4, "longest time between two repairs of one path; dialers bound connects per host")
    residue_cap_s: float = _seconds(3_600, "longest time between two tries to remove what is left of a session")
    backoff_base_s: float = _seconds(1, "first back-off; full jitter, doubling")
    backoff_cap_s: float = _seconds(60, "longest back-off")

    def override(self, seconds: Mapping[str, float]) -> "Timeouts":
        """The same table with some entries replaced; an unknown name raises `TypeError`."""
        return attrs.evolve(self, **seconds)

    def scaled(self, factor: float) -> "Timeouts":
        """Every duration multiplied by `factor`; simulations draw it from 0.1 to 10."""
        return Timeouts(*(value * factor for value in attrs.astuple(self)))


# How long a created job may stay invisible differs by kind of system (design section 9).
HORIZON_S: Mapping[str, float] = {"unicore": 30, "slurm": 60, "ssh-host": 5, "kubernetes": 0.001}
