"""A trace told to people."""

from moorage.simulator.story import story_of

ANN, BOB = "a" * 26, "b" * 26
TRACE = [
    "0 process 1 started",
    f"1000 {ANN} Started Waiting 0 0",
    f"1500 {BOB} Started Waiting 0 0",
    f"2000 job alpha.1 created for {ANN} attempt 1",
    f"2001 job alpha.2 created for {BOB} attempt 1",
    "2100 fault F-U3.submit at alpha.submit",
    "2200 job alpha.1 admitted",
    "2300 job alpha.2 over",
    "3000 fault F-D2.full at store.save",
    "3500 fault F-D2.full at store.save",
    "3723004 fault F-D2.full at store.save",
    f"3723005 {ANN} StopAsked Stopping 1 2",
    f"3723006 {ANN} Woke Stopping 1 1",
    "3723007 storm S2",
    f"3723008 BROKEN a_stop_is_honest: session {ANN}: it ended while its job alpha.1 lives",
    f"3723009 {ANN} Woke Ended 1 0",
]


def test_what_concerns_the_session_is_told_in_words() -> None:
    assert story_of(TRACE) == [
        " 0:00:00.000 process 1 started",
        " 0:00:01.000 session aaaaaa: Started -> Waiting (attempt 0)",
        " 0:00:02.000 job alpha.1 is created for session aaaaaa (attempt 1)",
        " 0:00:02.100 fault F-U3.submit: submit: timeout after the effect, at alpha.submit",
        " 0:00:02.200 job alpha.1: its lab is started",
        " 0:00:03.000 fault F-D2.full: the disk is full, at store.save (3 times, until 1:02:03.004)",
        " 1:02:03.005 session aaaaaa: StopAsked -> Stopping (attempt 1, 2 things to remove)",
        " 1:02:03.006 session aaaaaa: Woke -> Stopping (attempt 1, 1 thing to remove)",
        " 1:02:03.007 storm S2: the login node of the first system reboots, whatever its sessions are doing.",
        " 1:02:03.008 BROKEN: a stop is honest: session aaaaaa: it ended while its job alpha.1 lives",
    ]


def test_a_story_is_short() -> None:
    """What came long before is left out, never the end."""
    long = [f"{number} {ANN} {'Woke' if number % 2 else 'Probed'} Ready 1 0" for number in range(500)]
    told = story_of([*long, f"500 BROKEN ready_decays: session {ANN}: it is called ready"], lines=10)
    assert len(told) == 10
    assert told[-1].endswith("BROKEN: ready decays: session aaaaaa: it is called ready")


def test_a_break_that_is_nobodys_tells_of_everybody() -> None:
    told = story_of([*TRACE[:5], "9 BROKEN poll_cost_bounded: 900 status calls to alpha in 60 s"])
    assert any("bbbbbb" in line for line in told)
    assert any("aaaaaa" in line for line in told)


def test_a_trace_without_a_break_is_told_to_its_end() -> None:
    told = story_of(["0 process 1 started", "60000 healed"])
    assert told == [" 0:00:00.000 process 1 started", " 0:01:00.000 healed"]
    assert story_of([]) == []
