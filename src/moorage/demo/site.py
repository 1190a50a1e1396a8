"""One simulated site as a process: `python -m moorage.demo.site unicore|slurm CONFIG [PORT DIRECTORY]`."""

import sys
from pathlib import Path


def main(kind: str, config: str, port: str = "0", directory: str = "") -> None:
    """Serve until told to stop; prints where, as the servers do."""
    if kind == "unicore":
        from moorage.simulator.servers.unicore import main_serve

        main_serve(config=Path(config))
    else:
        from moorage.simulator.servers import ssh

        ssh.main_serve(port=int(port), config=Path(config), directory=Path(directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
