"""Rendering is data (invariant: parse(render(options)) = options; the script never changes)."""

import json
import re

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.core.plan import (
    SCRIPT,
    GatePort,
    Lab,
    LaunchLimits,
    LaunchPlan,
    LaunchSecrets,
    PlanError,
    Problem,
    Resources,
    batch_script,
    parse_directives,
    parse_plan,
    render,
)
from moorage.core.secret import Secret

hostile = st.sampled_from(
    ["\n#SBATCH --account=x", "$(id)", "`id`", "'", '"', "\\", "\0", "; rm -rf ~", "-", "--", "{socket}", "</script>"]
)
anything = st.text(max_size=20)
texts = st.one_of(anything, st.builds(lambda a, b, c: a + b + c, anything, hostile, anything))
words = st.from_regex(re.compile("[A-Za-z0-9_][A-Za-z0-9_.+-]{0,20}", re.ASCII), fullmatch=True)
junk = st.recursive(st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner) | st.tuples(inner))

printable = texts.map(lambda text: "".join(char for char in text if char.isprintable()))
variables = st.from_regex(re.compile("V[A-Z0-9_]{0,10}", re.ASCII), fullmatch=True)
optional = st.none() | st.integers(1, 500)

valid_plans = st.builds(
    LaunchPlan,
    tag=st.from_regex(re.compile("m[a-z0-9]{1,40}", re.ASCII), fullmatch=True),
    attempt=st.integers(0, 9999),
    owner=printable,
    command=st.lists(printable, max_size=4).map(lambda items: ("lab", *items, "--sock={socket}")),
    service=st.just("jupyterlab"),
    args=st.lists(printable.map(lambda text: "--A.b=" + text) | words, max_size=4).map(tuple),
    modules=st.lists(words, max_size=3).map(lambda names: tuple(name for name in names if name[0] not in ".+-")),
    setup=st.lists(printable, max_size=3).map(tuple),
    environment=st.dictionaries(variables, printable, max_size=5).map(lambda pairs: tuple(pairs.items())),
    directory=st.sampled_from(["~", ".", "/p/scratch", "~/work and play"]),
    walltime_s=st.integers(0, 10**6),
    requeue=st.booleans(),
    callback=st.sampled_from(["", "https://hub.example.org/hub/moorage", "http://127.0.0.1:8000/"]),
    resources=st.builds(
        Resources,
        nodes=st.integers(1, 99),
        cores=optional,
        memory_mib=optional,
        gpus=optional,
        account=st.just("") | words,
        partition=st.just("") | words,
        reservation=st.just("") | words,
        qos=st.just("") | words,
    ),
    gate=st.builds(GatePort, kind=st.sampled_from(["tcp", "unix"]), interface=st.sampled_from(["127.0.0.1", "ib0"])),
    lab=st.builds(Lab, probe_path=st.sampled_from(["/api", "/user/a%20b/api?x=1"])),
    limits=st.builds(LaunchLimits, admission_s=st.integers(1, 900)),
)


@given(plan=valid_plans, token=texts.filter(lambda text: "\0" not in text))
def test_what_was_rendered_parses_back_and_the_script_stays(plan: LaunchPlan, token: str) -> None:
    rendered = render(plan, LaunchSecrets(Secret("00" * 32), (("TOKEN", Secret(token)),)))
    assert parse_plan(rendered.plan) == plan
    assert json.loads(rendered.secret.reveal())["environment"] == {"TOKEN": token}
    assert rendered.script == SCRIPT
    script = batch_script(rendered.directives)
    assert parse_directives(script) == rendered.directives
    assert len(script.split("\n")) == len(SCRIPT.split("\n")) + len(rendered.directives)
    assert [line for line in script.split("\n") if not line.startswith("#SBATCH ")] == SCRIPT.split("\n")


FIELDS = [attribute.name for attribute in attrs.fields(LaunchPlan)]
PLAIN = LaunchPlan(tag="m1", attempt=1, owner="alice", command=("lab", "{socket}"))


@given(st.dictionaries(st.sampled_from(FIELDS), junk | st.lists(junk).map(tuple), min_size=1))
def test_any_value_in_any_field_is_carried_exactly_or_refused_by_name(changes: dict[str, object]) -> None:
    plan, problems = made(changes)
    if plan is None:
        named = {re.split(r"[.\[ ]", problem.field)[0] for problem in problems}
        assert problems
        # The command has to say where the lab listens, so it can be wrong because of the field `lab`.
        assert named <= set(changes) | {"command"}
        assert sum(len(str(problem)) for problem in problems[:50]) < 30_000
    else:
        rendered = render(plan, LaunchSecrets(Secret("00" * 32)))
        assert parse_plan(rendered.plan) == plan
        assert rendered.script == SCRIPT


def made(changes: dict[str, object]) -> tuple[LaunchPlan | None, tuple[Problem, ...]]:
    try:
        return attrs.evolve(PLAIN, **changes), ()
    except PlanError as error:
        return None, error.problems


@given(st.dictionaries(st.sampled_from([attribute.name for attribute in attrs.fields(Resources)]), texts, min_size=1))
def test_no_resource_text_makes_a_second_directive(changes: dict[str, str]) -> None:
    try:
        plan = attrs.evolve(PLAIN, resources=attrs.evolve(Resources(), **changes))
    except PlanError:
        return
    rendered = render(plan, LaunchSecrets(Secret("00" * 32)))
    assert parse_directives(batch_script(rendered.directives)) == rendered.directives


@given(texts | st.binary(max_size=200) | junk.map(json.dumps))
def test_a_plan_file_of_any_content_is_refused_in_words(text: str | bytes) -> None:
    with pytest.raises(PlanError, match="expected"):
        parse_plan(text)
