"""
The real sshd of a module's tests.

Assertions of suites that stand beside the tests tell what they compared, like those of the tests themselves.
"""

from collections.abc import Iterator

import pytest
from tests.servers import sshd

pytest.register_assert_rewrite("tests.contract.system.suite")


@pytest.fixture(scope="module")
def server() -> Iterator[sshd.Sshd]:
    try:
        with sshd.server() as made:
            yield made
    except sshd.NotInstalled as error:
        pytest.skip(str(error))
