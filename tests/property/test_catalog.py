"""A forged form gains nothing: whatever is submitted, only what the rules allow is accepted."""

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import event, given, settings
from hypothesis import strategies as st

from moorage.core.catalog import (
    FIELDS,
    RESOURCES,
    Account,
    AccountChoice,
    Audience,
    Catalog,
    Choices,
    Extra,
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
    SystemOffer,
    User,
    Window,
    choices,
    fit,
    validate,
)
from moorage.core.model import Instant, SystemName

NAMES = ("a", "b", "c")
NOW = Instant(100)
Alternative = TypeVar(
    "Alternative", ServiceChoice, PlaceChoice, AccountChoice, ProjectChoice, PartitionChoice, ReservationChoice
)
START = Start(("lab", "{socket}"))

names = st.sampled_from(NAMES)
some_names = st.none() | st.lists(names, max_size=2).map(tuple)
audiences = (
    st.just(Audience())
    | st.just(Audience())
    | st.just(Audience())
    | st.builds(
        Audience,
        groups=some_names,
        users=some_names,
        attributes=st.none() | st.dictionaries(names, st.lists(names, max_size=2).map(tuple), max_size=1),
    )
)
ranges = st.tuples(*[st.integers(0, 5)] * 3).map(sorted).map(lambda three: ResourceRange(three[0], three[2], three[1]))
windows = st.builds(
    Window, st.none() | st.integers(90, 110).map(Instant), st.none() | st.integers(90, 110).map(Instant)
)


def mappings(values: st.SearchStrategy[object], most: int = 2, least: int = 0) -> st.SearchStrategy[dict[str, object]]:
    return st.dictionaries(names, values, min_size=least, max_size=most)


systems = st.builds(
    SystemOffer,
    partitions=mappings(
        st.builds(
            Partition,
            login=st.booleans(),
            resources=st.dictionaries(st.sampled_from(RESOURCES[1:4]), ranges).map(
                lambda some: {**some, "walltime_s": ResourceRange(60, 600, 120)}
            ),
            audience=audiences,
        )
    ),
    accounts=mappings(st.builds(Account, audience=audiences)),
    projects=mappings(st.builds(Project, accounts=some_names, partitions=some_names, audience=audiences)),
    reservations=mappings(st.builds(Reservation, window=windows, partitions=some_names, audience=audiences), 1),
    maintenance=st.just(()) | st.just(()) | st.lists(windows, max_size=1).map(tuple),
    audience=audiences,
    by_rights=st.sampled_from((False, False, False, True)),
)
extras = st.builds(Extra, ticked=st.booleans(), systems=some_names, audience=audiences)
services = st.builds(
    Service,
    places=mappings(st.builds(Place, st.just(START), some_names), 3, 1),
    kernels=mappings(extras, 1),
    extensions=mappings(extras, 1),
    default=st.booleans(),
    audience=audiences,
)
catalogs = st.builds(
    Catalog,
    systems=mappings(systems, 3, 2),
    services=mappings(services, 2, 1),
    rights=st.just((Right("hpc", "{account},{system}_{partition},{project}"), Right("all", "{system}:{project}"))),
)
users = st.builds(
    User,
    names,
    st.frozensets(names, max_size=2),
    st.fixed_dictionaries(
        {
            "a": st.lists(names, max_size=1).map(tuple),
            "hpc": st.lists(
                st.tuples(names, names, names, names).map(lambda n: f"{n[0]},{n[1]}_{n[2]},{n[3]}"), max_size=2
            ).map(tuple),
            "all": st.lists(st.tuples(names, names).map(":".join), max_size=1).map(tuple),
        }
    ),
)
junk = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(names, max_size=3) | st.floats()
forged = st.dictionaries(st.text(max_size=4) | st.sampled_from(FIELDS), names | junk, max_size=4)


@st.composite
def forms(draw: st.DrawFn, tree: Choices) -> dict[str, object]:
    """A form filled from the tree, open or not, with some fields left out and perhaps some forged."""
    form: dict[str, object] = {}

    def one(field: str, alternatives: Sequence[Alternative]) -> Alternative | None:
        if not alternatives:
            return None
        found = draw(st.sampled_from(alternatives), label=field)
        form[field] = found.name
        return found

    systems = {system.name: system for system in tree.systems}
    service = one("service", tree.services)
    place = one("system", service.places) if service else None
    account = one("account", systems[place.name].accounts) if place else None
    project = one("project", account.projects) if account else None
    partition = one("partition", project.partitions) if project else None
    if place is not None and partition is not None:
        for name, limits in partition.resources.items():
            form[name] = draw(st.integers(limits.least, limits.most) | st.integers(0, 700), label=name)
        form["kernels"] = [each.name for each in place.kernels]
        one("reservation", partition.reservations)
    kept = {name: form[name] for name in sorted(form) if draw(st.booleans(), label=f"keep {name}")}
    return kept | draw(st.just({}) | st.just({}) | forged, label="forged")


@settings(max_examples=150)
@given(catalogs, users, st.just(set()) | st.sets(names, max_size=1), st.data())
def test_only_what_the_rules_allow_is_accepted(
    catalog: Catalog, user: User, closed: set[str], data: st.DataObject
) -> None:
    """The accepted options are checked against the catalogue itself, not against the tree made from it."""
    tree = choices(catalog, user, NOW, {SystemName(name): "closed" for name in closed})
    form = data.draw(forms(tree), label="form")
    outcome = validate(tree, form)
    if isinstance(outcome, tuple):
        event("refused")
        assert outcome
        return
    event("accepted")
    assert_allowed(catalog, user, outcome, closed)
    for field, value in form.items():
        assert field in FIELDS
        assert value in (None, "") or is_what_was_asked(outcome, field, value)


@given(catalogs, users, st.data())
def test_what_is_fitted_is_allowed_and_needs_no_further_change(
    catalog: Catalog, user: User, data: st.DataObject
) -> None:
    """Fitting never widens: the result passes the check of a submitted form unchanged."""
    tree = choices(catalog, user, NOW)
    fitted = fit(tree, data.draw(forms(tree), label="form"))
    event("nothing" if fitted.options is None else "something")
    if fitted.options is None:
        assert fitted.problems
        return
    assert_allowed(catalog, user, fitted.options, set())
    assert validate(tree, as_form(fitted.options)) == fitted.options


@given(catalogs, users)
def test_whatever_is_shown_as_open_can_be_had(catalog: Catalog, user: User) -> None:
    """Every open way down the tree is accepted, and no other."""
    tree = choices(catalog, user, NOW)
    systems = {system.name: system for system in tree.systems}
    for service in tree.services:
        for place in service.places:
            for account in systems[place.name].accounts:
                for project in account.projects:
                    for partition in project.partitions:
                        way = (service, systems[place.name], account, project, partition)
                        outcome = validate(
                            tree,
                            {
                                "service": service.name,
                                "system": place.name,
                                "account": account.name,
                                "project": project.name,
                                "partition": partition.name,
                            },
                        )
                        is_open = all(each.why_not is None for each in way)
                        here = place.partitions is None or partition.name in place.partitions
                        assert isinstance(outcome, SessionOptions) is (is_open and here)


def assert_allowed(catalog: Catalog, user: User, options: SessionOptions, closed: set[str]) -> None:
    service, system = catalog.services[options.service], catalog.systems[options.system]
    place = service.places[options.system]
    assert admitted(service.audience, user)
    assert admitted(system.audience, user)
    assert options.system not in closed
    assert not any(covers(window) for window in system.maintenance)
    partition = system.partitions.get(options.partition, Partition())
    assert options.partition in (system.partitions or {""})
    assert place.partitions is None or options.partition in place.partitions
    assert admitted(partition.audience, user)
    assert options.login == partition.login
    assert_way(catalog, user, options)
    for name in RESOURCES:
        limits, amount = partition.resources.get(name), getattr(options, name)
        if limits is None:
            assert amount == (1 if name == "nodes" else None)
        else:
            assert limits.least <= amount <= limits.most
    if options.reservation:
        reservation = system.reservations[options.reservation]
        assert admitted(reservation.audience, user)
        assert covers(reservation.window)
        assert reservation.partitions is None or options.partition in reservation.partitions
        assert not options.login
    for ticked, known in ((options.kernels, service.kernels), (options.extensions, service.extensions)):
        assert len(set(ticked)) == len(ticked)
        for name in ticked:
            assert admitted(known[name].audience, user)
            assert known[name].systems is None or options.system in (known[name].systems or ())


def assert_way(catalog: Catalog, user: User, options: SessionOptions) -> None:
    """Account, project and partition go together by the configuration or by one attribute of the user."""
    system = catalog.systems[options.system]
    login = system.partitions.get(options.partition, Partition()).login
    partition = options.partition

    def granted() -> bool:
        for value in user.attributes["hpc"]:
            account, rest, project = value.split(",")
            where, _, part = rest.partition("_")
            if (account, where, project) == (options.account, options.system, options.project):
                return login or part == partition or granted_by_configuration()
        return options.account == "" and f"{options.system}:{options.project}" in user.attributes["all"]

    def granted_by_configuration() -> bool:
        if system.accounts:
            account = system.accounts.get(options.account)
            if account is None or not admitted(account.audience, user):
                return False
        elif options.account or system.by_rights:
            return False
        if not system.projects:
            return options.project == ""
        project = system.projects.get(options.project)
        return (
            project is not None
            and admitted(project.audience, user)
            and (project.accounts is None or options.account in project.accounts)
            and (project.partitions is None or partition in project.partitions or login)
        )

    assert granted() or granted_by_configuration() or several_grants(user, options)


def several_grants(user: User, options: SessionOptions) -> bool:
    """The same account and project twice, each for another partition."""
    wanted = f"{options.account},{options.system}_{options.partition},{options.project}"
    return wanted in user.attributes["hpc"]


def admitted(audience: Audience, user: User) -> bool:
    rules = (audience.groups, audience.users, audience.attributes)
    if rules == (None, None, None):
        return True
    return (
        bool(set(audience.groups or ()) & user.groups)
        or user.name in (audience.users or ())
        or any(
            value in user.attributes.get(name, ())
            for name, values in (audience.attributes or {}).items()
            for value in values
        )
    )


def covers(window: Window) -> bool:
    begins = -1 if window.begins is None else window.begins
    ends = 10**9 if window.ends is None else window.ends
    return begins <= NOW < ends


def is_what_was_asked(options: SessionOptions, field: str, value: object) -> bool:
    got = getattr(options, field)
    if field in ("kernels", "extensions"):
        assert isinstance(value, str | list | tuple)
        return set(got) == ({value} if isinstance(value, str) else set(value))
    if field in RESOURCES:
        return bool(str(got) == str(value) or int(str(value)) == got)
    return bool(got == value)


def as_form(options: SessionOptions) -> dict[str, object]:
    """The form that asks for these options."""
    form: dict[str, object] = {name: getattr(options, name) for name in FIELDS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in form.items()}
