"""The client's side of the gate, against vectors computed here by hand from the decision record."""

import hashlib
import hmac
import json

import pytest

from moorage.core.gate import (
    DOCUMENT_LIMIT,
    LINE_LIMIT,
    Answer,
    LabState,
    Purpose,
    Unproven,
    Verdict,
    check_answer,
    check_document,
    request,
)
from moorage.core.secret import Secret

KEY = "0f" * 32
SECRET = Secret(KEY)
NONCE, CHALLENGE = "1" * 32, "2" * 32


def mac(label: str, message: str, key: str = KEY) -> str:
    return hmac.new(bytes.fromhex(key), f"{label}\n{message}".encode(), hashlib.sha256).hexdigest()


REQUEST = request(SECRET, Purpose.STREAM, "mtag1", NONCE, 42, CHALLENGE)


def answer_line(text: str, key: str = KEY, to: bytes = REQUEST.line) -> bytes:
    return f"{text} {mac('answer', to[:-1].decode() + chr(10) + text, key)}\n".encode()


def test_the_request_line_is_as_written_down():
    text = f"moorage/1 stream mtag1 {NONCE} 42 {CHALLENGE}"
    made = request(SECRET, Purpose.STREAM, "mtag1", NONCE, 42, CHALLENGE)
    assert made.line == f"{text} {mac('request', text)}\n".encode()
    assert KEY not in repr(made)


def test_a_fixed_vector():
    """The same bytes in every implementation, for ever."""
    proof = b"618f8a42fb19d7052347d3a5aa234ff4ddb3e6fbe3cc7bc1ab1754a0ea404a9f"
    assert REQUEST.line.split()[-1] == proof


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("moorage/1 ok lab=starting", Answer(Verdict.OK, LabState.STARTING)),
        (
            "moorage/1 ok http=200 lab=serving left=3600",
            Answer(Verdict.OK, LabState.SERVING, http=200, left_s=3600),
        ),
        ("moorage/1 gone code=3 lab=ended", Answer(Verdict.GONE, LabState.ENDED, exit_code=3)),
        ("moorage/1 stale floor=77", Answer(Verdict.STALE, floor=77)),
        ("moorage/1 ok lab=waiting later=1", Answer(Verdict.OK, LabState.WAITING)),
    ],
)
def test_a_proven_answer_is_read(text, answer):
    assert check_answer(SECRET, REQUEST, answer_line(text)) == answer


OTHER = request(SECRET, Purpose.STREAM, "mtag1", NONCE, 43, CHALLENGE)
GOOD = answer_line("moorage/1 ok lab=serving")


NO_LINE, NO_PROOF, OTHER_VERSION = "no answer line", "the answer proves nothing", "another version of the protocol"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", NO_LINE),
        (GOOD[:-1], NO_LINE),
        (b"\xff" * 600, NO_LINE),
        (answer_line("moorage/1 ok" + " a=1" * 200), NO_LINE),
        (b"\n", NO_PROOF),
        (GOOD.upper(), NO_PROOF),
        (GOOD.replace(b"serving", b"waiting"), NO_PROOF),
        (REQUEST.line, NO_PROOF),
        (answer_line("moorage/1 ok lab=serving", key="aa" * 32), NO_PROOF),
        (answer_line("moorage/1 ok lab=serving", to=OTHER.line), NO_PROOF),
        (b"HTTP/1.1 200 OK\r\n", NO_PROOF),
        (answer_line("moorage/2 ok"), OTHER_VERSION),
        (answer_line("moorage/1 ök"), OTHER_VERSION),
        (answer_line("moorage/1 maybe"), OTHER_VERSION),
        (answer_line("moorage/1 ok lab=happy"), OTHER_VERSION),
        (answer_line("moorage/1 ok code=abc"), OTHER_VERSION),
    ],
    ids=range(16),
)
def test_anything_else_proves_nothing(line, why):
    """Cut, changed, reflected, of another secret, of another request, of another version."""
    with pytest.raises(Unproven, match=rf"^(a proven answer of )?{why}$"):
        check_answer(SECRET, REQUEST, line)


def test_an_answer_may_be_as_long_as_a_line_may_be():
    line = answer_line("moorage/1 ok lab=serving a=1234567" + " b=1" * 103)
    assert len(line) == LINE_LIMIT
    assert check_answer(SECRET, REQUEST, line) == Answer(Verdict.OK, LabState.SERVING)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"tag": "a b"}, "the tag is not 1 to 64 letters and digits"),
        ({"tag": ""}, "the tag is not 1 to 64 letters and digits"),
        ({"tag": "x" * 65}, "the tag is not 1 to 64 letters and digits"),
        ({"tag": "a\n"}, "the tag is not 1 to 64 letters and digits"),
        ({"nonce": "X" * 32}, "nonce and challenge are 32 lower-case hexadecimal digits each"),
        ({"challenge": "2" * 31}, "nonce and challenge are 32 lower-case hexadecimal digits each"),
        ({"counter": 0}, "the counter is not between 1 and 999999999999999999"),
        ({"counter": 10**18}, "the counter is not between 1 and 999999999999999999"),
        ({"secret": Secret("short")}, "a gate secret is 64 lower-case hexadecimal digits"),
    ],
    ids=range(9),
)
def test_arguments_outside_their_grammar_are_refused(wrong, why):
    good = {"secret": SECRET, "tag": "t", "nonce": NONCE, "counter": 1, "challenge": CHALLENGE}
    with pytest.raises(ValueError, match=f"^{why}$"):
        request(purpose=Purpose.PROBE, **(good | wrong))


def document(**members: object) -> str:
    body = {"kind": "endpoint", "tag": "mtag1", "host": "n1", "port": 5} | members
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps(body | {"mac": mac("document", text)})


def test_a_report_is_believed_if_it_is_proven_and_this_jobs():
    content = check_document(SECRET, "endpoint", "mtag1", document())
    assert content == {"kind": "endpoint", "tag": "mtag1", "host": "n1", "port": 5}


def test_a_report_in_any_script_and_any_length_that_is_allowed():
    """What counts is its bytes: as text or as bytes, with letters of all kinds, up to the very limit."""
    text = json.dumps(json.loads(document(host="nœud-ä")), ensure_ascii=False)
    for report in (text, text.encode(), text + " " * (DOCUMENT_LIMIT - len(text.encode()))):
        assert check_document(SECRET, "endpoint", "mtag1", report)["host"] == "nœud-ä"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (document() + " " * DOCUMENT_LIMIT, "too long"),
        (json.dumps(json.loads(document(host="ä" * 40_000)), ensure_ascii=False), "too long"),
        (document(tag="other"), "this job's"),
        (document(kind="status"), "this job's"),
        (document().replace('"n1"', '"n2"'), "this job's"),
        (document().replace('"port": 5', '"port": 5, "port": 6'), "not a proven JSON object"),
        (document().replace('"port": 5', '"port": 6, "port": 5'), "not a proven JSON object"),
        (document()[:-5], "not a proven JSON object"),
        ("[]", "not a proven JSON object"),
        ("null", "not a proven JSON object"),
        ("{}", "not a proven JSON object"),
        ('{"mac": 5}', "not a proven JSON object"),
        ('{"mac": "ä"}', "not a proven JSON object"),
        ('{"mac": "\ud800"}', "not a proven JSON object"),
        ("[" * 20_000, "not a proven JSON object"),
        ("", "not a proven JSON object"),
        (b"\xff\xfe", "not a proven JSON object"),
    ],
    ids=range(17),
)
def test_every_other_report_is_not(text, why):
    with pytest.raises(Unproven, match=rf"^the report is .*{why}$"):
        check_document(SECRET, "endpoint", "mtag1", text)
