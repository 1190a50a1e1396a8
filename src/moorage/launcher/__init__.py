"""
What runs inside the job: one program file, standard library only, Python 3.6 or newer.

It is staged into the job directory as it is and never imported here; `source` gives its text to whoever stages it.
"""

from functools import cache
from importlib.resources import files


@cache
def source() -> str:
    """The program's text, to be staged as `moorage_launcher.py` (`moorage.core.plan.LAUNCHER_NAME`)."""
    return files(__name__).joinpath("moorage_launcher.py").read_text(encoding="utf-8")
