"""How hard to look: `pytest --hypothesis-profile quick|ci|soak`."""

from hypothesis import HealthCheck, settings

# Virtual worlds take as long as they take; a deadline in real time would only measure who else uses the machine.
_slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile("quick", max_examples=20, deadline=None, suppress_health_check=_slow)
# The same on every run: whether a change may land must not be a matter of luck. `soak` looks further.
settings.register_profile(
    "ci", max_examples=100, deadline=None, suppress_health_check=_slow, print_blob=True, derandomize=True
)
settings.register_profile("soak", max_examples=10_000, deadline=None, suppress_health_check=_slow, print_blob=True)
settings.load_profile("ci")
