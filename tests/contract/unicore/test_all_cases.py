"""The reference has 135 cases; every one of them is the name of a test here."""

import re
from pathlib import Path

CASES = set(range(1, 136))


def test_no_case_is_left_out() -> None:
    found: set[int] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for named in re.findall(r"^async def test_(\d{3}(?:_(?:and|to)_\d{3})*)", path.read_text(), re.MULTILINE):
            numbers = [int(number) for number in re.findall(r"\d{3}", named)]
            found.update(numbers)
            if named[3:7] == "_to_":
                found.update(range(numbers[0], numbers[1]))
    assert found == CASES, sorted(found ^ CASES)
