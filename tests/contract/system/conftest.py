"""Lets the test modules of this directory take their tests: `from system.suite import *`."""

import sys
from pathlib import Path

import pytest

_CONTRACT = str(Path(__file__).parents[1])
if _CONTRACT not in sys.path:
    sys.path.insert(0, _CONTRACT)
pytest.register_assert_rewrite("system.suite")
