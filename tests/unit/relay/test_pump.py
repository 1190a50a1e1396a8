"""The end of one direction of a stream, over connections that have halves and over those that have none."""

from types import SimpleNamespace
from typing import Any

import pytest

from moorage.relay.pump import Stream


def stream_over(transport: Any) -> Any:
    stream: Any = Stream(SimpleNamespace(transport=transport), lambda _stream, _error: None)  # type: ignore[arg-type]
    stream.near = SimpleNamespace(finish=lambda: True)
    return stream


@pytest.mark.parametrize("halves", [True, False], ids=["TCP", "TLS"])
async def test_the_other_direction_goes_on_where_a_connection_has_halves(halves: bool) -> None:
    """asyncio writes a warning on the terminal about every TLS connection that is asked to go on."""
    stream = stream_over(SimpleNamespace(can_write_eof=lambda: halves))
    assert stream.eof_received() is halves
    assert stream.ended
