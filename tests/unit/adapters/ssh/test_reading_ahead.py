"""What paramiko reads from: the same bytes in the sizes that it asks for, whatever pieces they come in."""

import socket
from collections.abc import Iterator

import pytest

from moorage.adapters.ssh.client import AHEAD, ReadingAhead


@pytest.fixture
def pair() -> Iterator[tuple[ReadingAhead, socket.socket]]:
    near, far = socket.socketpair()
    with ReadingAhead(near.family, near.type, near.proto, near.detach()) as ours, far:
        ours.settimeout(5)
        yield ours, far


def test_pieces_are_as_asked_for(pair: tuple[ReadingAhead, socket.socket]) -> None:
    ours, far = pair
    far.sendall(bytes(range(100)))
    assert [ours.recv(4), ours.recv(60), ours.recv(60)] == [bytes(range(4)), bytes(range(4, 64)), bytes(range(64, 100))]
    far.sendall(b"next")
    assert ours.recv(1000) == b"next"


def test_one_that_asks_for_much_gets_it(pair: tuple[ReadingAhead, socket.socket]) -> None:
    ours, far = pair
    sent = bytes(range(256)) * 300
    far.sendall(sent)
    far.close()
    heard = b""
    while piece := ours.recv(2 * AHEAD):
        heard += piece
    assert heard == sent


def test_nothing_is_waited_for_while_something_is_there(pair: tuple[ReadingAhead, socket.socket]) -> None:
    ours, far = pair
    far.sendall(b"ab")
    ours.settimeout(0.01)
    assert (ours.recv(1), ours.recv(8)) == (b"a", b"b")
    with pytest.raises(TimeoutError):
        ours.recv(1)
    far.sendall(b"c")
    assert ours.recv(1) == b"c"


def test_the_end_is_told_after_the_last_byte(pair: tuple[ReadingAhead, socket.socket]) -> None:
    ours, far = pair
    far.sendall(b"ab")
    far.close()
    assert [ours.recv(1), ours.recv(1), ours.recv(1)] == [b"a", b"b", b""]
