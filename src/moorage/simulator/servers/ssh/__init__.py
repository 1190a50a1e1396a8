"""
A login node with a Slurm cluster behind it, on this machine: SSH over real sockets, jobs as real processes.

    with serve(NodeConfig(accounts=(Account("alice"),))) as running:
        running.port, running.host_key, running.key_file    # what a client needs

It is a paramiko server and works in threads. Read `server` for how it begins and ends, `connection` for what happens
on one connection, `commands` for Slurm's commands, `cluster` for how jobs become processes, `faults` for everything
that can go wrong on purpose.

All accounts are the same user of this machine: the node separates homes, not people.
"""

from .cluster import ManualClock, RunningClock
from .config import Account, ConfigError, Limits, NodeConfig, Nodes, Partition, Timing, load
from .faults import Faults, Rule, catalogue
from .server import Running, main_serve, serve

__all__ = [
    "Account",
    "ConfigError",
    "Faults",
    "Limits",
    "ManualClock",
    "NodeConfig",
    "Nodes",
    "Partition",
    "Rule",
    "Running",
    "RunningClock",
    "Timing",
    "catalogue",
    "load",
    "main_serve",
    "serve",
]
