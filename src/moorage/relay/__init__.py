"""
The data plane, a process of its own: a listener per session, a stream to its job, the gate, then bytes both ways.

`process.main` is the process, `client.RelayTunnels` speaks to it, `client.InProcessRelay` is the same without one.
"""
