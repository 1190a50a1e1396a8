"""Assertions of suites that stand beside the tests tell what they compared, like those of the tests themselves."""

import pytest

pytest.register_assert_rewrite("tests.contract.system.suite")
