"""A text that must not get anywhere by accident."""

import hmac
from typing import NoReturn, Self, final

_STARS = "********"


@final
class Secret:
    """
    Holds a text and shows stars: in `repr`, `str`, every format, tracebacks with locals, and dumps of attrs classes.

    It refuses pickling, and being no string it is refused by JSON, by concatenation, by `bytes` and by files.
    The one way out is `reveal`, so that a search for that word finds every place where a secret leaves.
    Copies are the same object. Comparison takes the same time wherever the texts differ.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"a secret is text, not {type(text).__name__}")
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({_STARS})"

    def __str__(self) -> str:
        return _STARS

    def __format__(self, spec: str) -> str:
        return _STARS

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_encoded(self._text), _encoded(other._text))

    __hash__ = None  # type: ignore[assignment]  # a hash would make it a key, and keys get printed

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a secret is not pickled")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
