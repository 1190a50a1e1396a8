"""From what was chosen to the plan of a job."""

import pytest
from attrs import evolve

from moorage.core.catalog import Extra, Place, Service, SessionOptions, Start
from moorage.core.launch import account_of, gate_problems, on_login_node, pairs_of, plan_of, start_problems
from moorage.core.model import Instant, Owner, SessionId, SessionKey, SessionSpec, SystemName, Tag
from moorage.core.plan import GatePort, LaunchPlan, PlanError, Resources, parse_plan, render
from moorage.core.plan import LaunchSecrets as Secrets
from moorage.core.secret import Secret
from moorage.core.timeouts import Timeouts

JUNIPER = SystemName("juniper")
TAG = Tag("m0000demo" + "a" * 26 + "0001")
OPTIONS = SessionOptions(
    service="lab",
    system=JUNIPER,
    account="max1",
    project="hpc",
    partition="gpu",
    login=False,
    walltime_s=3_600,
    nodes=2,
    cores=24,
    memory_mib=64_000,
    gpus=4,
    reservation="course",
    kernels=("julia",),
    extensions=("git",),
)
SERVICE = Service(
    {
        JUNIPER: Place(
            Start(
                command=("jupyter", "lab", "--ServerApp.sock={socket}"),
                modules=("Python/3.12",),
                environment={"OMP_NUM_THREADS": "1", "STAGE": "2026"},
                setup=(("mkdir", "-p", "/tmp/a b; $(x)"),),
                probe_path="/api/status",
                directory="~/work",
            )
        )
    },
    kernels={"julia": Extra(modules=("Julia/1.11", "Python/3.12"), environment={"JULIA_THREADS": "8", "STAGE": "j"})},
    extensions={"git": Extra(args=("--LabApp.news_url=None",))},
)


def spec(chosen: SessionOptions = OPTIONS, **changes: object) -> SessionSpec:
    made = SessionSpec(
        id=SessionId("a" * 26),
        key=SessionKey("hub", Owner("me")),
        system=chosen.system,
        asked_at=Instant(0),
        seed=1,
        service=chosen.service,
        partition=chosen.partition,
        walltime_s=chosen.walltime_s,
        nodes=chosen.nodes,
        options=pairs_of(chosen, ("--ServerApp.port=1",), {"JUPYTERHUB_USER": "me", "STAGE": "mine"}),
    )
    return evolve(made, **changes)


def plan(made: SessionSpec, service: Service = SERVICE) -> LaunchPlan:
    return plan_of(TAG, 1, made, service, GatePort(), "https://hub.example.org/reports")


def test_the_plan_holds_what_was_chosen_and_configured() -> None:
    made = plan(spec())
    assert made.command == ("jupyter", "lab", "--ServerApp.sock={socket}")
    assert made.modules == ("Python/3.12", "Julia/1.11")
    assert made.args == ("--LabApp.news_url=None", "--ServerApp.port=1")
    assert dict(made.environment) == {
        "OMP_NUM_THREADS": "1",
        "STAGE": "mine",
        "JULIA_THREADS": "8",
        "JUPYTERHUB_USER": "me",
    }
    assert made.resources == Resources(
        nodes=2, cores=24, memory_mib=64_000, gpus=4, account="hpc", partition="gpu", reservation="course"
    )
    assert (made.lab.listen, made.lab.probe_path, made.directory) == ("unix", "/api/status", "~/work")
    assert (made.walltime_s, made.owner, made.attempt, made.tag) == (3_600, "me", 1, TAG)
    assert made.callback == "https://hub.example.org/reports"


def test_words_of_setup_reach_the_shell_quoted() -> None:
    """The operator wrote a program and arguments; the shell that has to run them reads the same words."""
    assert plan(spec()).setup == ("mkdir -p '/tmp/a b; $(x)'",)


def test_the_same_attempt_gives_the_same_files() -> None:
    secrets = Secrets(Secret("0" * 64))
    assert render(plan(spec()), secrets) == render(plan(spec()), secrets)
    assert parse_plan(render(plan(spec()), secrets).plan) == plan(spec())


def test_a_login_partition_is_no_queue() -> None:
    login = spec(evolve(OPTIONS, login=True, partition="login"))
    assert on_login_node(login)
    assert not on_login_node(spec())
    assert plan(login).resources.partition == ""


def test_the_account_is_for_the_adapter() -> None:
    assert account_of(spec()) == "max1"
    assert account_of(spec(evolve(OPTIONS, account=""))) == ""


def test_what_was_left_open_is_left_to_the_system() -> None:
    bare = SessionOptions(
        service="lab", system=JUNIPER, account="", project="", partition="", login=False, walltime_s=60
    )
    assert pairs_of(bare) == ()
    assert plan(spec(bare, options=())).resources == Resources()


def test_the_launcher_waits_for_admission_as_long_as_the_table_says() -> None:
    table = Timeouts()
    assert plan(spec()).limits.admission_s == table.admission_s
    assert plan(spec(timeouts=table.scaled(0.001))).limits.admission_s == 1
    assert plan(spec(timeouts=table.scaled(1_000))).limits.admission_s == 86_400


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ((("gres", "gpu:1"),), "options"),
        ((("cores", "4"), ("cores", "8")), "options.cores"),
        ((("cores", "four"),), "options.cores"),
        ((("gpus", "-1"),), "options.gpus"),
        ((("kernel", "fortran"),), "options.kernel"),
        ((("extension", "julia"),), "options.extension"),
        ((("project", "--gres=gpu"),), "resources.account"),
        ((("reservation", "a\n#SBATCH --uid=0"),), "resources.reservation"),
        ((("cores", "0"),), "resources.cores"),
        ((("arg", "-f"),), "args[1]"),
        ((("arg", "--x=\0"),), "args[1]"),
        ((("env.BASH_ENV", "/tmp/evil"),), "environment.BASH_ENV"),
        ((("env.A B", "x"),), "environment[2] (its name)"),
        ((("env.", "x"),), "environment[2] (its name)"),
    ],
)
def test_options_that_cannot_be_are_refused_with_their_field(options: tuple[tuple[str, str], ...], field: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan(spec(options=(("extension", "git"), *options)))
    assert [problem.field for problem in caught.value.problems] == [field]


def test_a_service_that_the_system_does_not_offer_makes_no_plan() -> None:
    with pytest.raises(PlanError, match="service: is not offered on this system"):
        plan(spec(), Service({}))


@pytest.mark.parametrize("owner", ["me\nyou", "x" * 1000, "\u202eme", "", "mé@example.org"])
def test_any_owner_can_be_shown(owner: str) -> None:
    """The name is for people; whatever the Hub allows as a name starts."""
    made = plan(spec(key=SessionKey("hub", Owner(owner)))).owner
    assert made.isprintable()
    assert len(made) <= 255


def test_what_no_plan_could_hold_is_told_without_a_session() -> None:
    good = SERVICE.places[JUNIPER].start
    assert start_problems(good, SERVICE.kernels.values()) == ()
    assert [p.field for p in start_problems(evolve(good, command=("lab",)))] == ["command"]
    assert [p.field for p in start_problems(evolve(good, listen="tcp"))] == ["command"]
    assert [p.field for p in start_problems(good, [Extra(modules=("a;b",))])] == ["modules[1]"]
    assert gate_problems(GatePort()) == ()
    assert [p.field for p in gate_problems(GatePort(port_first=2, port_last=1))] == ["gate.port_last"]
