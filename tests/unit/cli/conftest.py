"""Commands set the level of moorage's loggers; the next test finds it as it was."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    logger = logging.getLogger("moorage")
    level = logger.level
    yield
    logger.setLevel(level)
