"""
The demonstration: a JupyterHub, its proxy, two simulated UNICORE sites and a simulated Slurm cluster, on one machine.

`files` writes the configuration, `running` starts and stops the processes, `chaos` harms them on purpose, `login` lets
the two users in. Nothing listens anywhere but on 127.0.0.1.
"""
