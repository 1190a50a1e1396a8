"""What a user is offered, why not, and what becomes of a submitted form."""

import pytest
from attrs import evolve

from moorage.core.catalog import (
    FIELDS,
    Account,
    AccountChoice,
    Audience,
    Catalog,
    Choices,
    Extra,
    ExtraChoice,
    Grant,
    Lack,
    Partition,
    PartitionChoice,
    Place,
    PlaceChoice,
    Project,
    ProjectChoice,
    Reservation,
    ReservationChoice,
    ResourceRange,
    Right,
    Service,
    ServiceChoice,
    SessionOptions,
    Start,
    SystemChoice,
    SystemOffer,
    User,
    WhyNot,
    Window,
    choices,
    fit,
    grants_of,
    right_form_problem,
    validate,
)
from moorage.core.model import Instant, SystemName
from moorage.core.plan import Problem

JUNIPER, CEDAR = SystemName("juniper"), SystemName("cedar")
NOW = Instant(1_000_000)
STAFF = Audience(groups=("staff",))
LAB = Place(Start(("lab", "{socket}")))
ME = User("me")

BATCH = Partition(
    resources={
        "nodes": ResourceRange(1, 16, 2),
        "gpus": ResourceRange(0, 4, 0),
        "walltime_s": ResourceRange(60, 86_400, 7_200),
    }
)
LOGIN = Partition(login=True, resources={"walltime_s": ResourceRange(60, 3_600, 600)})


def catalog(
    system: SystemOffer | None = None, service: Service | None = None, rights: tuple[Right, ...] = ()
) -> Catalog:
    """One system with a batch and a login partition, one service on it."""
    offer = system or SystemOffer(partitions={"batch": BATCH, "login": LOGIN})
    return Catalog({JUNIPER: offer}, {"lab": service or Service({JUNIPER: LAB})}, rights)


def chosen(catalog: Catalog, asked: dict[str, object], user: User = ME) -> SessionOptions:
    options = validate(choices(catalog, user, NOW), asked)
    assert isinstance(options, SessionOptions), options
    return options


def wrong(catalog: Catalog, asked: dict[str, object], user: User = ME) -> dict[str, str]:
    """The wrong fields, each with what is wrong."""
    problems = validate(choices(catalog, user, NOW), asked)
    assert isinstance(problems, tuple)
    assert all(isinstance(problem, Problem) for problem in problems)
    return {problem.field: problem.wrong for problem in problems}


def test_an_empty_form_gets_what_is_proposed() -> None:
    assert chosen(catalog(), {}) == SessionOptions(
        service="lab",
        system=JUNIPER,
        account="",
        project="",
        partition="batch",
        login=False,
        walltime_s=7_200,
        nodes=2,
        gpus=0,
    )


def test_a_full_form_gets_what_it_asks_for() -> None:
    asked = {"service": "lab", "system": "juniper", "partition": "batch", "nodes": "16", "gpus": 4, "walltime_s": 60}
    options = chosen(catalog(), asked)
    assert (options.nodes, options.gpus, options.walltime_s) == (16, 4, 60)


def test_a_login_partition_is_marked_and_has_no_counts() -> None:
    options = chosen(catalog(), {"partition": "login", "nodes": 1})
    assert options.login
    assert (options.nodes, options.gpus, options.walltime_s) == (1, None, 600)
    assert wrong(catalog(), {"partition": "login", "gpus": 1}) == {"gpus": "cannot be chosen in this partition"}


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"service": "other"}, "service", "is not one of those that are offered"),
        ({"system": "cedar"}, "system", "is not one of those that are offered"),
        ({"partition": ["batch"]}, "partition", "is not one of those that are offered"),
        ({"account": "root"}, "account", "is not one of those that are offered"),
        ({"project": "x"}, "project", "is not one of those that are offered"),
        ({"nodes": 17}, "nodes", "is out of range"),
        ({"nodes": 0}, "nodes", "is out of range"),
        ({"nodes": -1}, "nodes", "is out of range"),
        ({"nodes": 1.5}, "nodes", "is no whole number"),
        ({"nodes": True}, "nodes", "is no whole number"),
        ({"nodes": "1 "}, "nodes", "is no whole number"),
        ({"nodes": "٣"}, "nodes", "is no whole number"),
        ({"nodes": "9" * 5000}, "nodes", "is no whole number"),
        ({"cores": 4}, "cores", "cannot be chosen in this partition"),
        ({"walltime_s": 86_401}, "walltime_s", "is out of range"),
        ({"reservation": "mine"}, "reservation", "is not one of those that are offered"),
        ({"kernels": ["evil"]}, "kernels", "has 1 names that are not offered"),
        ({"kernels": {"a": 1}}, "kernels", "is no list"),
        ({"kernels": ["x"] * 101}, "kernels", "is no list"),
        ({"extensions": [[]]}, "extensions", "has 1 names that are not offered"),
        ({"login": True, "$(x)": 1}, "form", "has 2 unknown fields"),
    ],
)
def test_what_is_not_offered_is_refused_with_its_field(asked: dict[str, object], field: str, said: str) -> None:
    assert wrong(catalog(), asked) == {field: said}


def test_everything_wrong_is_told_at_once_and_values_are_not_repeated() -> None:
    problems = validate(choices(catalog(), ME, NOW), {"nodes": "<b>", "gpus": "hunter2", "partition": "<script>"})
    assert isinstance(problems, tuple)
    assert {problem.field for problem in problems} == {"nodes", "gpus", "partition"}
    assert not any(text in str(problem) for problem in problems for text in ("<", "hunter2"))


# The whole tree --------------------------------------------------------------------------------------------------

NOT_MINE, NOT_HERE = WhyNot(Lack.NOT_FOR_YOU), WhyNot(Lack.NOT_HERE)


def test_the_whole_tree_of_a_user() -> None:
    """Everything that the operator wrote is there, and on everything that cannot be had the reason."""
    soon = Window(Instant(NOW + 5), Instant(NOW + 9), "new disks")
    running = Window(Instant(NOW - 5), Instant(NOW + 7), "moving")
    juniper = SystemOffer(
        description="big",
        notice="slow today",
        partitions={
            "batch": evolve(BATCH, description="nodes"),
            "gpu": evolve(BATCH, description="cards", audience=STAFF),
            "login": evolve(LOGIN, description="no queue"),
        },
        accounts={"course": Account("for the course"), "staff": Account(audience=STAFF)},
        projects={
            "open": Project("for all", partitions=("batch",)),
            "inner": Project("closed", audience=STAFF),
            "staffs": Project(accounts=("staff",)),
            "cards": Project("cards only", partitions=("gpu",)),
        },
        reservations={
            "elsewhere": Reservation(partitions=("gpu",)),
            "now": Reservation("a course", partitions=("batch",)),
            "later": Reservation("next week", window=Window(Instant(NOW + 1))),
            "past": Reservation("last week", window=Window(None, NOW)),
        },
        maintenance=(Window(None, NOW), soon, Window(NOW, NOW)),
    )
    service = Service(
        {JUNIPER: evolve(LAB, partitions=("batch",)), CEDAR: LAB, SystemName("gone"): LAB},
        kind="vscode",
        version="5",
        description="an editor",
        deprecated="old",
        default=True,
        kernels={"r": Extra("R", ticked=True, systems=(CEDAR,)), "julia": Extra("Julia", audience=STAFF)},
        extensions={"git": Extra("Git", systems=(JUNIPER,)), "nb": Extra("Books", ticked=True, audience=STAFF)},
    )
    some = Catalog({JUNIPER: juniper, CEDAR: SystemOffer(maintenance=(running,))}, {"lab": service}, notice="welcome")

    def partition(name: str, why_not: WhyNot | None = None) -> PartitionChoice:
        reservations = {
            "batch": (ReservationChoice("now", "a course"),),
            "gpu": (ReservationChoice("elsewhere", ""),),
            "login": (),
        }[name]
        if name != "login":
            reservations += (
                ReservationChoice("later", "next week", WhyNot(Lack.NOT_YET, until=Instant(NOW + 1))),
                ReservationChoice("past", "last week", WhyNot(Lack.OVER)),
            )
        made = juniper.partitions[name]
        return PartitionChoice(name, made.description, made.login, why_not, made.resources, reservations)

    not_in = WhyNot(Lack.NOT_IN_PROJECT)
    for_all = ProjectChoice(
        "open", "for all", None, (partition("batch"), partition("gpu", NOT_MINE), partition("login"))
    )
    for_cards = ProjectChoice(
        "cards", "cards only", None, (partition("batch", not_in), partition("gpu", NOT_MINE), partition("login"))
    )
    usual = PartitionChoice("", "", False, None, {"walltime_s": ResourceRange(60, 31_536_000, 7_200)}, ())
    closed = WhyNot(Lack.MAINTENANCE, "moving", Instant(NOW + 7))
    assert choices(some, ME, NOW) == Choices(
        services=(
            ServiceChoice(
                "lab",
                "vscode",
                "5",
                "an editor",
                "old",
                True,
                None,
                (
                    PlaceChoice(
                        JUNIPER,
                        None,
                        ("batch",),
                        (ExtraChoice("r", "R", True, NOT_HERE), ExtraChoice("julia", "Julia", False, NOT_MINE)),
                        (ExtraChoice("git", "Git", False), ExtraChoice("nb", "Books", True, NOT_MINE)),
                    ),
                    PlaceChoice(
                        CEDAR,
                        closed,
                        None,
                        (ExtraChoice("r", "R", True), ExtraChoice("julia", "Julia", False, NOT_MINE)),
                        (ExtraChoice("git", "Git", False, NOT_HERE), ExtraChoice("nb", "Books", True, NOT_MINE)),
                    ),
                ),
            ),
        ),
        systems=(
            SystemChoice(
                JUNIPER,
                "big",
                "slow today",
                (soon,),
                None,
                (AccountChoice("course", "for the course", None, (for_all, for_cards)),),
            ),
            SystemChoice(
                CEDAR,
                "",
                "",
                (),
                closed,
                (AccountChoice("", "", None, (ProjectChoice("", "", None, (usual,)),)),),
            ),
        ),
        notice="welcome",
    )


@pytest.mark.parametrize(
    ("offer", "lack"),
    [
        (SystemOffer(audience=STAFF), Lack.NOT_FOR_YOU),
        (SystemOffer(by_rights=True), Lack.NO_ACCOUNT),
        (SystemOffer(accounts={"a": Account(audience=STAFF)}), Lack.NO_ACCOUNT),
        (SystemOffer(projects={"p": Project(audience=STAFF)}), Lack.NO_PROJECT),
        (SystemOffer(partitions={"gpu": Partition(audience=STAFF)}), Lack.NO_PARTITION),
        (SystemOffer(projects={"p": Project(partitions=("x",))}), Lack.NO_PARTITION),
        # With several accounts none of which leads anywhere there is no single reason.
        (
            SystemOffer(accounts={"a": Account(), "b": Account()}, projects={"p": Project(audience=STAFF)}),
            Lack.NO_ACCOUNT,
        ),
    ],
    ids=range(7),
)
def test_what_a_closed_system_lacks(offer: SystemOffer, lack: Lack) -> None:
    tree = choices(catalog(offer), ME, NOW)
    assert tree.systems[0].why_not == WhyNot(lack)
    assert tree.services[0].why_not == WhyNot(Lack.NO_SYSTEM)


def test_an_account_says_why_its_projects_lead_nowhere() -> None:
    """The first project's reason, if none can be had; a project that can be had opens the account."""
    offer = SystemOffer(
        partitions={"gpu": BATCH},
        accounts={"a": Account(), "b": Account()},
        projects={"one": Project(accounts=("a",), partitions=("x",)), "two": Project(accounts=("a", "b"))},
    )
    a, b = choices(catalog(offer), ME, NOW).systems[0].accounts
    assert [project.why_not for project in a.projects] == [WhyNot(Lack.NO_PARTITION), None]
    assert (a.why_not, b.why_not) == (None, None)
    narrow = evolve(offer, projects={"one": Project(partitions=("x",)), "two": Project(partitions=("y",))})
    assert [each.why_not for each in choices(catalog(narrow), ME, NOW).systems[0].accounts] == [
        WhyNot(Lack.NO_PARTITION)
    ] * 2


def test_maintenance_that_begins_now_is_not_planned() -> None:
    offer = SystemOffer(maintenance=(Window(NOW, None, "now"), Window(Instant(NOW + 1), None, "next")))
    system = choices(catalog(offer), ME, NOW).systems[0]
    assert [window.notice for window in system.planned] == ["next"]
    assert system.why_not == WhyNot(Lack.MAINTENANCE, "now")


# What is said ----------------------------------------------------------------------------------------------------

KNOWN = (
    "service, system, account, project, partition, nodes, cores, memory_mib, gpus, walltime_s, reservation, kernels, "
    "extensions"
)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"service": "x"}, "service: is not one of those that are offered; expected one of lab"),
        ({"system": "x"}, "system: is not one of those that are offered; expected one of juniper"),
        ({"account": "x"}, "account: is not one of those that are offered; expected one of none"),
        ({"partition": "x"}, "partition: is not one of those that are offered; expected one of batch, login"),
        ({"nodes": "x"}, "nodes: is no whole number; expected a whole number from 1 to 16"),
        ({"gpus": 5}, "gpus: is out of range; expected a whole number from 0 to 4"),
        ({"cores": 1}, "cores: cannot be chosen in this partition; expected no value"),
        ({"kernels": 7}, "kernels: is no list; expected a list of at most 100 names"),
        ({"kernels": ["x", 1]}, "kernels: has 2 names that are not offered; expected one of julia, r"),
        ({"extensions": "x"}, "extensions: has 1 names that are not offered; expected nothing: none can be had"),
        ({"reservation": "x"}, "reservation: is not one of those that are offered; expected one of r0, r2"),
        (
            {"reservation": "r1"},
            "reservation: cannot be had: it is open to other groups only; expected one of r0, r2",
        ),
        ({"a": 1, "b": 2, "nodes": 1}, f"form: has 2 unknown fields; expected only {KNOWN}"),
    ],
    ids=range(13),
)
def test_what_is_said_about_a_wrong_field(asked: dict[str, object], said: str) -> None:
    offer = SystemOffer(
        partitions={"batch": BATCH, "login": LOGIN},
        reservations={"r0": Reservation(), "r1": Reservation(audience=STAFF), "r2": Reservation()},
    )
    kernels = {"julia": Extra(), "old": Extra(audience=STAFF), "r": Extra()}
    problems = validate(choices(catalog(offer, Service({JUNIPER: LAB}, kernels=kernels)), ME, NOW), asked)
    assert isinstance(problems, tuple)
    assert [str(problem) for problem in problems] == [said]


def test_of_many_alternatives_twenty_are_named() -> None:
    for count, more in ((19, ""), (20, ""), (21, " and 1 more"), (32, " and 12 more")):
        some = catalog(SystemOffer(partitions={f"p{n}": BATCH for n in range(count)}))
        problems = validate(choices(some, ME, NOW), {"partition": "x"})
        assert isinstance(problems, tuple)
        assert problems[0].right == "one of " + ", ".join(f"p{n}" for n in range(min(count, 20))) + more


def test_of_many_that_cannot_be_had_five_say_why() -> None:
    closed = {f"s{n}": Service({JUNIPER: LAB}, audience=STAFF) for n in range(7)}
    problems = validate(choices(Catalog({JUNIPER: SystemOffer()}, closed), ME, NOW), {})
    assert isinstance(problems, tuple)
    reasons = "; ".join(f"s{n}: it is open to other groups only" for n in range(5))
    assert [str(problem) for problem in problems] == [
        f"service: cannot be had; expected one that can be had ({reasons})"
    ]
    nameless = Service({JUNIPER: Place(LAB.start, partitions=("x",))})
    problems = validate(choices(catalog(SystemOffer(), nameless), ME, NOW), {})
    assert isinstance(problems, tuple)
    assert [str(problem) for problem in problems] == [
        "partition: cannot be had; expected one that can be had (it: this system does not have it)"
    ]


# Numbers and lists -----------------------------------------------------------------------------------------------


def test_every_count_that_is_asked_for_is_had() -> None:
    ranges = {name: ResourceRange(0, 99, 7) for name in ("nodes", "cores", "memory_mib", "gpus", "walltime_s")}
    some = catalog(SystemOffer(partitions={"all": Partition(resources=ranges)}))
    asked = {"nodes": 1, "cores": "2", "memory_mib": 3, "gpus": "4", "walltime_s": 5}
    made = chosen(some, asked)
    assert (made.nodes, made.cores, made.memory_mib, made.gpus, made.walltime_s) == (1, 2, 3, 4, 5)
    made = chosen(some, {"nodes": None, "cores": ""})
    assert (made.nodes, made.cores, made.memory_mib, made.gpus, made.walltime_s) == (7, 7, 7, 7, 7)
    assert chosen(some, {"gpus": 0, "cores": 99}).gpus == 0


def test_a_hundred_may_be_ticked() -> None:
    kernels = {f"k{n}": Extra() for n in range(100)}
    some = catalog(service=Service({JUNIPER: LAB}, kernels=kernels))
    assert chosen(some, {"kernels": list(kernels)}).kernels == tuple(kernels)
    assert chosen(some, {"kernels": ""}).kernels == ()


def test_a_wrong_reservation_is_none_and_spoils_no_other_field() -> None:
    offer = SystemOffer(
        partitions={"batch": BATCH}, reservations={"r": Reservation(), "s": Reservation(audience=STAFF)}
    )
    tree = choices(catalog(offer), ME, NOW)
    for name in ("x", "s"):
        fitted = fit(tree, {"reservation": name})
        assert fitted.options is not None
        assert fitted.options.reservation == ""
    fitted = fit(tree, {"nodes": 99, "reservation": "r"})
    assert fitted.options is not None
    assert (fitted.options.nodes, fitted.options.reservation) == (2, "r")
    assert [problem.field for problem in fitted.problems] == ["nodes"]
    bare = fit(choices(catalog(), ME, NOW), {"reservation": "x"})
    assert bare.options is not None
    assert bare.options.reservation == ""


def test_nothing_chosen_means_what_is_proposed_unless_nothing_is_a_name() -> None:
    named = SystemOffer(projects={"one": Project(), "two": Project()})
    assert chosen(catalog(named), {"project": ""}).project == "one"
    nameless = SystemOffer(projects={"one": Project(), "": Project()})
    assert chosen(catalog(nameless), {"project": ""}).project == ""
    assert chosen(catalog(nameless), {}).project == "one"


# Who -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("audience", "admitted"),
    [
        (Audience(), True),
        (Audience(groups=()), False),
        (Audience(groups=("staff", "course")), True),
        (Audience(groups=("staff",)), False),
        (Audience(groups=("staff",), users=("me",)), True),
        (Audience(users=("you",)), False),
        (Audience(attributes={"role": ("teacher", "tutor")}), True),
        (Audience(attributes={"role": ("tutor",)}), False),
        (Audience(attributes={"other": ("teacher",)}), False),
        (Audience(groups=("staff",), attributes={"role": ("teacher",)}), True),
    ],
)
def test_one_rule_that_fits_is_enough(audience: Audience, admitted: bool) -> None:
    user = User("me", frozenset({"course"}), {"role": ("student", "teacher")})
    assert audience.admits(user) is admitted


def test_groups_open_each_level_by_itself() -> None:
    """A closed service, system, partition, kernel: each is shown with the reason, none can be had."""
    extra = {"julia": Extra(audience=STAFF, ticked=True), "python": Extra(ticked=True)}
    offer = SystemOffer(partitions={"batch": evolve(BATCH, audience=STAFF), "login": LOGIN})
    some = catalog(offer, Service({JUNIPER: LAB}, kernels=extra))
    tree = choices(some, ME, NOW)
    (partition, _) = tree.systems[0].accounts[0].projects[0].partitions
    assert partition.why_not is not None
    assert partition.why_not.lack is Lack.NOT_FOR_YOU
    assert wrong(some, {"partition": "batch"}) == {"partition": "cannot be had: it is open to other groups only"}
    assert chosen(some, {}).partition == "login"
    assert chosen(some, {}).kernels == ("python",)
    member = User("me", frozenset({"staff"}))
    assert chosen(some, {}, member).partition == "batch"
    assert chosen(some, {}, member).kernels == ("julia", "python")

    closed = catalog(evolve(offer, audience=STAFF))
    assert wrong(closed, {}) == {"service": "cannot be had"}
    assert choices(closed, ME, NOW).systems[0].why_not is not None
    assert wrong(catalog(service=Service({JUNIPER: LAB}, audience=STAFF)), {"service": "lab"}) == {
        "service": "cannot be had: it is open to other groups only"
    }


# Accounts and projects -------------------------------------------------------------------------------------------

FORM = "{account},{system}_{partition},{project}"


@pytest.mark.parametrize(
    ("form", "value", "grant"),
    [
        (FORM, "max1,JUW_batch,hpc", Grant(JUNIPER, "max1", "hpc", "batch")),
        (FORM, "max1,juniper_big_mem,hpc", Grant(JUNIPER, "max1", "hpc", "big_mem")),
        ("{system}", "Juniper", Grant(JUNIPER)),
        ("urn:res:{system}#{project}", "urn:res:JUW#p-1", Grant(JUNIPER, "", "p-1")),
        (FORM, "max1,JUW_batch,hpc,more", None),
        (FORM, "max1,JUW,hpc", None),
        (FORM, ",JUW_batch,hpc", None),
        (FORM, "max1,JUW_batch,", None),
        (FORM, "", None),
        (FORM, "max1,JUW_batch,--gres=x", None),
        (FORM, "max1,JUW_batch,a b", None),
        (FORM, "max1,JUW_batch,a\nb", None),
        ("urn:res:{system}#{project}", "urn:RES:JUW#p", None),
        (FORM, "m,j_b,h", Grant(SystemName("j"), "m", "h", "b")),
    ],
)
def test_rights_are_read_from_attributes(form: str, value: str, grant: Grant | None) -> None:
    right = Right("hpc", form, {"JUW": JUNIPER})
    assert right_form_problem(form) == ""
    assert grants_of((right,), User("me", attributes={"hpc": (value, value), "other": ("max1,JUW_batch,no",)})) == (
        () if grant is None else (grant,)
    )


def test_a_right_that_names_no_system_opens_none() -> None:
    assert Right("hpc", "{account}").read("max1") == Grant(SystemName(""), "max1")


@pytest.mark.parametrize("form", ["{account}", "{system}{account}", "{system},{system}"])
def test_forms_that_cannot_be_read_are_told(form: str) -> None:
    assert right_form_problem(form) == (
        "{system}, and each of {account}, {project}, {partition} at most once, with a character between two"
    )


def test_rights_make_the_ways_down_to_a_partition() -> None:
    """Accounts and projects come from the attribute; a partition that no right names is not in the project."""
    system = SystemOffer(partitions={"batch": BATCH, "gpu": BATCH, "login": LOGIN}, by_rights=True)
    some = catalog(system, rights=(Right("hpc", FORM),))
    user = User(
        "me",
        attributes={"hpc": ("max1,juniper_batch,one", "max1,juniper_gpu,two", "max2,juniper_gpu,two", "x,cedar_a,b")},
    )
    assert chosen(some, {}, user).account == "max1"
    assert chosen(some, {"account": "max2"}, user).project == "two"
    assert chosen(some, {"project": "two"}, user).partition == "gpu"
    assert chosen(some, {"project": "one", "partition": "login"}, user).login
    assert wrong(some, {"project": "one", "partition": "gpu"}, user) == {
        "partition": "cannot be had: the project may not use it"
    }
    assert wrong(some, {"account": "max2", "project": "one"}, user) == {
        "project": "is not one of those that are offered"
    }
    assert choices(some, ME, NOW).systems[0].why_not == choices(some, User("you"), NOW).systems[0].why_not
    lack = choices(some, ME, NOW).systems[0].why_not
    assert lack is not None
    assert lack.lack is Lack.NO_ACCOUNT


def test_configured_accounts_and_projects_go_together_as_configured() -> None:
    system = SystemOffer(
        partitions={"batch": BATCH, "gpu": BATCH},
        accounts={"course": Account(), "staff": Account(audience=STAFF)},
        projects={"open": Project(partitions=("batch",)), "inner": Project(accounts=("staff",))},
    )
    some = catalog(system)
    assert (chosen(some, {}).account, chosen(some, {}).project, chosen(some, {}).partition) == (
        "course",
        "open",
        "batch",
    )
    assert wrong(some, {"account": "staff"}) == {"account": "is not one of those that are offered"}
    assert wrong(some, {"project": "inner"}) == {"project": "is not one of those that are offered"}
    member = User("me", frozenset({"staff"}))
    inner = chosen(some, {"account": "staff", "project": "inner", "partition": "gpu"}, member)
    assert (inner.account, inner.project, inner.partition) == ("staff", "inner", "gpu")


@pytest.mark.parametrize(
    ("values", "open_ones"),
    [
        (("a,juniper_batch,p", "a,juniper_gpu,p"), {"batch", "gpu", "login"}),
        (("a,juniper_batch,p", "a,juniper_gpu,q"), {"batch", "login"}),
        (("a,juniper_batch,p", "a,juniper,p"), {"batch", "gpu", "big", "login"}),
        (("a,juniper,p", "a,juniper_batch,p"), {"batch", "gpu", "big", "login"}),
    ],
    ids=range(4),
)
def test_a_project_that_is_granted_twice_may_use_all_that_any_grant_says(
    values: tuple[str, ...], open_ones: set[str]
) -> None:
    system = SystemOffer(partitions={"batch": BATCH, "gpu": BATCH, "big": BATCH, "login": LOGIN})
    rights = tuple(Right(value, FORM if "_" in value else "{account},{system},{project}") for value in values)
    user = User("me", attributes={value: (value,) for value in values})
    (account,) = choices(catalog(system, rights=rights), user, NOW).systems[0].accounts
    assert {each.name for each in account.projects[0].partitions if each.why_not is None} == open_ones


# When ------------------------------------------------------------------------------------------------------------


def test_maintenance_closes_a_system_while_it_lasts() -> None:
    window = Window(NOW, Instant(NOW + 10), "new disks")
    some = catalog(SystemOffer(partitions={"batch": BATCH}, maintenance=(window,)))
    before = choices(some, ME, Instant(NOW - 1)).systems[0]
    during = choices(some, ME, NOW).systems[0]
    after = choices(some, ME, Instant(NOW + 10)).systems[0]
    assert (before.why_not, before.planned) == (None, (window,))
    assert during.why_not is not None
    assert (during.why_not.lack, str(during.why_not), during.why_not.until) == (
        Lack.MAINTENANCE,
        "it is under maintenance: new disks",
        window.ends,
    )
    assert (after.why_not, after.planned) == (None, ())
    assert wrong(some, {}) == {"service": "cannot be had"}


def test_a_closed_system_says_what_the_administrator_wrote() -> None:
    tree = choices(catalog(), ME, NOW, closed={JUNIPER: "back at noon"})
    assert str(tree.systems[0].why_not) == "it takes no new sessions now: back at noon"
    problems = validate(tree, {"service": "lab", "system": "juniper"})
    assert isinstance(problems, tuple)


def test_reservations_are_for_their_time_people_and_partitions() -> None:
    reservations = {
        "now": Reservation(partitions=("batch",)),
        "later": Reservation(window=Window(Instant(NOW + 1))),
        "past": Reservation(window=Window(None, NOW)),
        "theirs": Reservation(audience=STAFF),
    }
    some = catalog(SystemOffer(partitions={"batch": BATCH, "gpu": BATCH, "login": LOGIN}, reservations=reservations))
    assert chosen(some, {}).reservation == ""
    assert chosen(some, {"reservation": "now"}).reservation == "now"
    assert wrong(some, {"reservation": "later"}) == {"reservation": "cannot be had: it has not begun"}
    assert wrong(some, {"reservation": "past"}) == {"reservation": "cannot be had: it is over"}
    assert wrong(some, {"reservation": "theirs"}) == {"reservation": "cannot be had: it is open to other groups only"}
    for partition in ("gpu", "login"):
        said = {"reservation": "is not one of those that are offered"}
        assert wrong(some, {"reservation": "now", "partition": partition}) == said


# Services --------------------------------------------------------------------------------------------------------


def test_the_default_service_is_proposed_while_it_can_be_had() -> None:
    places = {JUNIPER: LAB}
    services = {"old": Service(places, deprecated="use new"), "new": Service(places, default=True)}
    some = Catalog({JUNIPER: SystemOffer()}, services)
    assert chosen(some, {}).service == "new"
    closed = evolve(some, services={**services, "new": Service({}, default=True)})
    assert chosen(closed, {}).service == "old"
    assert choices(closed, ME, NOW).services[0].deprecated == "use new"
    lack = choices(closed, ME, NOW).services[1].why_not
    assert lack is not None
    assert lack.lack is Lack.NO_SYSTEM


def test_a_service_is_offered_where_it_has_a_place() -> None:
    """On some systems, there in some partitions, and its kernels on some systems."""
    kernels = {"r": Extra(systems=(CEDAR,), ticked=True), "julia": Extra()}
    service = Service({JUNIPER: Place(LAB.start, partitions=("gpu",)), CEDAR: LAB}, kernels=kernels)
    systems = {JUNIPER: SystemOffer(partitions={"batch": BATCH, "gpu": BATCH}), CEDAR: SystemOffer()}
    some = Catalog(systems, {"lab": service, "other": Service({CEDAR: LAB})})
    assert chosen(some, {"kernels": "julia"}).partition == "gpu"
    assert chosen(some, {}).kernels == ()
    assert chosen(some, {"system": "cedar", "kernels": ["julia", "r"]}).kernels == ("r", "julia")
    assert chosen(some, {"system": "cedar", "kernels": []}).kernels == ()
    assert wrong(some, {"partition": "batch"}) == {"partition": "cannot be had: this system does not have it"}
    assert wrong(some, {"service": "other", "system": "juniper"}) == {"system": "is not one of those that are offered"}
    assert wrong(some, {"kernels": ["r"]}) == {"kernels": "has 1 names that are not offered"}


def test_a_system_without_partitions_has_one_without_a_name() -> None:
    options = chosen(catalog(SystemOffer()), {})
    assert (options.partition, options.walltime_s, options.nodes) == ("", 7_200, 1)


def test_an_old_preset_is_fitted_and_says_what_changed() -> None:
    """What is still valid stays; the rest is what the form proposes."""
    fitted = fit(choices(catalog(), ME, NOW), {"partition": "gone", "nodes": 12, "walltime_s": 10**6})
    assert fitted.options is not None
    assert (fitted.options.partition, fitted.options.nodes, fitted.options.walltime_s) == ("batch", 12, 7_200)
    assert {problem.field for problem in fitted.problems} == {"partition", "walltime_s"}


def test_where_nothing_can_be_had_nothing_is_fitted() -> None:
    fitted = fit(choices(Catalog({}, {}), ME, NOW), {})
    assert fitted.options is None
    assert [str(problem) for problem in fitted.problems] == [
        "service: cannot be had; expected one that is configured; there is none"
    ]
    nowhere = catalog(SystemOffer(partitions={"batch": BATCH}), Service({JUNIPER: Place(LAB.start, partitions=("x",))}))
    assert wrong(nowhere, {}) == {"partition": "cannot be had"}


def test_the_fields_of_a_form_come_after_those_they_depend_on() -> None:
    assert FIELDS[:5] == ("service", "system", "account", "project", "partition")
