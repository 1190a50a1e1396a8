"""How leniently a description is read, and what is refused all the same."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.simulator.servers.unicore.orgjson import BadJSON, parse_object


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("{'tags': 'te\"st'}", {"tags": 'te"st'}),
        ("{a: b c, n: 12, e: 1.5e3, t: TRUE, z: null,}", {"a": "b c", "n": 12, "e": 1500.0, "t": True, "z": None}),
        ("{x: [1, two, ], y: {}}", {"x": [1, "two"], "y": {}}),
        ('{"a": 1} and more', {"a": 1}),
        ("{'it\\'s': 'a\\nb'}", {"it's": "a\nb"}),
        ("{a: 007, b: -0.5}", {"a": "007", "b": -0.5}),
    ],
)
def test_text_that_is_not_strict_is_understood(text: str, meaning: dict[str, Any]) -> None:
    assert parse_object(text.encode()) == meaning


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"a":',
        b"{a:'x}",
        b"{a:1,a:2}",
        b'{"a":1,"a":2}',
        b"{a:b;c:d}",
        b"{" * 2000,
        b'{"a":' * 2000,
        b"{a:" + b"[" * 100_000,
        b'{"a":' + b"[" * 100_000,
        b'{"a":"\xff"}',
        b"{'\\x': 1}",
    ],
)
def test_what_cannot_be_understood_is_refused_in_words(text: bytes) -> None:
    with pytest.raises(BadJSON, match=r".+"):
        parse_object(text)


@settings(max_examples=50)
@given(
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()), max_size=5)
)
def test_strict_json_means_what_it_says(document: dict[str, Any]) -> None:
    assert parse_object(json.dumps(document).encode()) == document


@given(st.binary(max_size=200).map(lambda data: b"{" + data))
def test_nothing_else_is_raised(data: bytes) -> None:
    with contextlib.suppress(BadJSON):
        assert isinstance(parse_object(data), dict)
