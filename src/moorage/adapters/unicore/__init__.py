"""
UNICORE sites: jobs over REST through `pyunicore`, and streams to them by port forwarding.

`translate` knows their words and is pure, `client` makes the calls, `system` and `dialer` answer our ports.
"""
