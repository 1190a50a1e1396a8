"""How long to wait before trying again, and how often trying again is allowed. Pure functions."""

from collections.abc import Sequence

from attrs import frozen

from .model import Instant

_MASK = (1 << 64) - 1


def mix(seed: int, number: int) -> int:
    """
    A well-spread 32-bit number from two numbers: the same for the same two, anywhere.

    Choices are arguments: each session brings one drawn number with it, and this makes as many of it as are
    needed. Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    """
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 32


def full_jitter_ms(base_s: float, cap_s: float, tries: int, seed: int) -> int:
    """
    Milliseconds to wait after failure number `tries` (1 is the first): uniform from 1 ms to the doubled base.

    Full jitter spreads those who failed together better than any fixed share of it.
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    # 2**20 is beyond every cap in use; without the bound a long outage would build numbers of any size.
    longest_ms = int(min(cap_s, base_s * (1 << min(max(tries, 1) - 1, 20))) * 1000)
    return 1 + mix(seed, tries) * longest_ms // (1 << 32)


RETRY_WINDOW_MS = 60_000
RETRY_SHARE = 10  # one retry per ten first tries
RETRY_FLOOR = 1


@frozen
class RetryBudget:
    """
    First tries and retries of one system within the last minute.

    At most a tenth of the first tries may be repeated, and always one: a system in trouble gets at most 10 % more
    load from us than it asked for.
    """

    first_tries: Sequence[Instant] = ()
    retries: Sequence[Instant] = ()

    def retries_left(self, now: Instant) -> int:
        """How many more retries fit into this minute."""
        first = sum(1 for at in self.first_tries if at > now - RETRY_WINDOW_MS)
        again = sum(1 for at in self.retries if at > now - RETRY_WINDOW_MS)
        return max(0, max(RETRY_FLOOR, first // RETRY_SHARE) - again)

    def allows_retry(self, now: Instant) -> bool:
        """Whether one more retry fits into this minute."""
        return self.retries_left(now) > 0

    def spent(self, now: Instant, *, retry: bool) -> "RetryBudget":
        """The budget after one more call; what is older than the window is forgotten."""
        first = [at for at in self.first_tries if at > now - RETRY_WINDOW_MS]
        again = [at for at in self.retries if at > now - RETRY_WINDOW_MS]
        (again if retry else first).append(now)
        return RetryBudget(tuple(first), tuple(again))
