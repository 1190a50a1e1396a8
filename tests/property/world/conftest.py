"""How many seeds of the world are run, by profile; and the modules beside the tests can be imported."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

SEEDS = {"quick": 200, "ci": 2_000, "soak": 100_000}
BATCH = 50


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seeds" in metafunc.fixturenames:
        count = SEEDS.get(metafunc.config.getoption("--hypothesis-profile", None) or "ci", SEEDS["ci"])
        batches = [range(first, first + BATCH) for first in range(0, count, BATCH)]
        metafunc.parametrize("seeds", batches, ids=[f"{batch.start}-{batch.stop - 1}" for batch in batches])
