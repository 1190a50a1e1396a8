"""Each row of the reliability specification that concerns the way home has a test; this says which."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
NAMED = ("contract/dialer", "contract/relay", "contract/system")
"""Folders whose tests name the rows in their docstrings."""

FAULTS = [f"F-T{number}" for number in range(1, 18)]

ELSEWHERE = {
    "T2": "unit/launcher/test_launcher.py::test_the_gate_can_be_a_unix_socket_that_others_cannot_reach",
    "T3": "unit/launcher/test_launcher.py::test_a_loopback_port_that_another_user_took_gets_no_byte",
    "T4": "unit/launcher/test_launcher.py::test_a_recorded_stop_does_not_stop_another_run",
    "T5": "unit/core/test_gate.py::test_every_other_report_is_not",
    "T6": "unit/launcher/test_launcher.py::test_only_the_operators_words_reach_a_shell",
    "T8": "property/test_plan.py::test_no_resource_text_makes_a_second_directive",
    "T17": "unit/launcher/test_launcher.py::test_no_secret_is_left_anywhere",
    "I49": "unit/launcher/test_launcher.py::test_no_secret_is_left_anywhere",
    "I51": "unit/core/test_gate.py::test_every_other_report_is_not",
    "I52": "unit/core/test_answers.py::",
    "I53": "property/test_plan.py::test_any_value_in_any_field_is_carried_exactly_or_refused_by_name",
    "I54": "unit/core/test_plan.py::test_the_directory_does_not_leave_its_root",
}
"""Rows whose best test is in another room."""

ROWS = [*FAULTS, "F-S2", "F-S4", *(f"T{number}" for number in (*range(1, 9), 17, 22, 23, 24))]
ROWS += [*(f"I{number}" for number in (*range(21, 28), *range(49, 55)))]


def docstrings() -> str:
    files = [file for folder in NAMED for file in (TESTS / folder).glob("test_*.py")]
    text = "\n".join(file.read_text() for file in files)
    told = re.findall(r'def test_\w+\((?:[^()]|\([^()]*\))*\)[^:]*:\n\s+"""(.*?)"""', text, re.DOTALL)
    spans = re.sub(r"T(\d+) to T(\d+)", _spelled, "\n".join(told))
    return spans + "\n".join(f"F-T{number}" for number in re.findall(r'"fault": "F-T(\d+)"', text))


def _spelled(match: "re.Match[str]") -> str:
    return " ".join(f"T{number}" for number in range(int(match[1]), int(match[2]) + 1))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_test(row: str) -> None:
    if row in ELSEWHERE:
        file, _, name = ELSEWHERE[row].partition("::")
        text = (TESTS / file).read_text()
        assert f"def {name}" in text if name else row in text
    else:
        assert re.search(rf"(?<![\w-]){row}(?!\d)", docstrings()), f"no test names {row}"
