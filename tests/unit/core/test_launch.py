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
    assert (made.service, made.gate) == ("lab", GatePort())


def test_where_launchers_listen_and_report_is_the_systems() -> None:
    gate = GatePort(interface="ib0", port_first=20_000, port_last=20_999)
    made = plan_of(TAG, 1, spec(), SERVICE, gate)
    assert (made.gate, made.callback) == (gate, "")


def test_options_of_everything_that_was_ticked() -> None:
    """In the order of the ticks, the user's own ones last."""
    service = evolve(SERVICE, extensions={"git": Extra(args=("--a=1", "--b=2")), "nb": Extra(args=("--c=3",))})
    made = plan(spec(evolve(OPTIONS, extensions=("git", "nb"))), service)
    assert made.args == ("--a=1", "--b=2", "--c=3", "--ServerApp.port=1")


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


KEYS = "account, project, reservation, login, cores, memory_mib, gpus, kernel, extension, arg"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((("gres", "gpu:1"),), f"options: has an unknown key; expected one of {KEYS}"),
        ((("cores", "4"), ("cores", "8")), "options.cores: is there twice; expected once"),
        ((("cores", "four"),), "options.cores: is no whole number; expected a whole number"),
        ((("memory_mib", "\u0664"),), "options.memory_mib: is no whole number; expected a whole number"),
        ((("gpus", "-1"),), "options.gpus: is no whole number; expected a whole number"),
        ((("gpus", "1" * 13),), "options.gpus: is no whole number; expected a whole number"),
        ((("kernel", "fortran"),), "options.kernel: is not configured; expected one that is"),
        ((("extension", "julia"),), "options.extension: is not configured; expected one that is"),
        ((("project", "--gres=gpu"),), "resources.account: begins with '-'; expected "),
        ((("reservation", "a\n#SBATCH --uid=0"),), "resources.reservation: has character U+000A at position 1; "),
        ((("cores", "0"),), "resources.cores: is too small; expected "),
        ((("arg", "-f"),), "args[1]: begins with '-' or is empty; expected "),
        ((("arg", "--x=\0"),), "args[1]: has character U+0000 at position 4; expected "),
        ((("env.BASH_ENV", "/tmp/evil"),), "environment.BASH_ENV: is a reserved name; expected "),
        ((("env.A B", "x"),), "environment[2] (its name): does not fit from position 1 on (character U+0020); "),
        ((("env.", "x"),), "environment[2] (its name): is empty; expected "),
    ],
    ids=range(16),
)
def test_options_that_cannot_be_are_refused_in_words(options: tuple[tuple[str, str], ...], said: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan(spec(options=(("extension", "git"), *options)))
    (problem,) = caught.value.problems
    assert str(problem).startswith(said)
    assert str(problem) == said or said.endswith(("; ", "; expected "))


def test_a_service_that_the_system_does_not_offer_makes_no_plan() -> None:
    with pytest.raises(PlanError, match=r"^service: is not offered on this system; expected a service that is$"):
        plan(spec(), Service({}))


@pytest.mark.parametrize(
    ("owner", "shown"),
    [
        ("me\nyou", "me?you"),
        ("x" * 1000, "x" * 255),
        ("\u202eme", "?me"),
        ("", ""),
        ("mé@example.org", "mé@example.org"),
    ],
    ids=range(5),
)
def test_any_owner_can_be_shown(owner: str, shown: str) -> None:
    """The name is for people; whatever the Hub allows as a name starts."""
    assert plan(spec(key=SessionKey("hub", Owner(owner)))).owner == shown


def test_what_no_plan_could_hold_is_told_without_a_session() -> None:
    good = SERVICE.places[JUNIPER].start
    assert start_problems(good, SERVICE.kernels.values()) == ()
    assert [p.field for p in start_problems(evolve(good, command=("lab",)))] == ["command"]
    assert [p.field for p in start_problems(evolve(good, listen="tcp"))] == ["command"]
    assert [p.field for p in start_problems(good, [Extra(modules=("a;b",))])] == ["modules[1]"]
    assert gate_problems(GatePort()) == ()
    assert [p.field for p in gate_problems(GatePort(port_first=2, port_last=1))] == ["gate.port_last"]
