"""The part of the configuration that users choose from, in the core's words."""

from collections.abc import Mapping

from moorage.core import catalog
from moorage.core.catalog import (
    LEAST_WALLTIME_S,
    LONGEST_WALLTIME_S,
    USUAL_WALLTIME_S,
    Audience,
    Catalog,
    ResourceRange,
    Window,
)
from moorage.core.model import Instant, SystemName

from .model import (
    AudienceConfig,
    Config,
    ExtraConfig,
    PartitionConfig,
    PartitionKind,
    PlaceConfig,
    Range,
    ReservationConfig,
    ServiceConfig,
    SizeRange,
    SystemConfig,
)

_MIB = 2**20


def catalog_of(config: Config) -> Catalog:
    """What can be chosen, for everybody."""
    return Catalog(
        systems={name: _system(system) for name, system in config.systems.items()},
        services={name: _service(service, config) for name, service in config.services.items()},
        rights=tuple(catalog.Right(each.attribute, each.form, each.systems) for each in config.rights),
        notice=config.notice,
    )


def _audience(rules: AudienceConfig) -> Audience:
    return Audience(rules.groups, rules.users, rules.attributes)


def _system(system: SystemConfig) -> catalog.SystemOffer:
    return catalog.SystemOffer(
        description=system.description,
        notice=system.notice,
        partitions={name: _partition(each) for name, each in system.partitions.items()},
        accounts={name: catalog.Account(each.description, _audience(each)) for name, each in system.accounts.items()},
        projects={
            name: catalog.Project(each.description, each.accounts, each.partitions, _audience(each))
            for name, each in system.projects.items()
        },
        reservations={name: _reservation(each) for name, each in system.reservations.items()},
        maintenance=tuple(Window(_at(each.begins_at), _at(each.ends_at), each.notice) for each in system.maintenance),
        audience=_audience(system),
        by_rights=system.by_rights,
    )


def _partition(partition: PartitionConfig) -> catalog.Partition:
    asked = {"nodes": _counts(partition.nodes), "cores": _counts(partition.cores), "gpus": _counts(partition.gpus)}
    resources = {
        **asked,
        "memory_mib": _sizes(partition.memory),
        "walltime_s": _walltime(partition),
    }
    return catalog.Partition(
        description=partition.description,
        login=partition.kind is PartitionKind.LOGIN,
        resources={name: limits for name, limits in resources.items() if limits is not None},
        audience=_audience(partition),
    )


def _counts(limits: Range | None) -> ResourceRange | None:
    if limits is None:
        return None
    return ResourceRange(limits.min, limits.max, limits.min if limits.default is None else limits.default)


def _sizes(limits: SizeRange | None) -> ResourceRange | None:
    """In MiB: the least is rounded up and the most down, so that nobody gets more than was meant."""
    if limits is None:
        return None
    least, most = -(-limits.min // _MIB), limits.max // _MIB
    most = max(least, most)
    default = least if limits.default is None else limits.default // _MIB
    return ResourceRange(least, most, min(max(default, least), most))


def _walltime(partition: PartitionConfig) -> ResourceRange:
    most = LONGEST_WALLTIME_S
    if partition.max_walltime is not None:
        most = max(1, min(int(partition.max_walltime), most))
    least = min(LEAST_WALLTIME_S, most)
    usual = USUAL_WALLTIME_S if partition.default_walltime is None else int(partition.default_walltime)
    return ResourceRange(least, most, min(max(usual, least), most))


def _reservation(reservation: ReservationConfig) -> catalog.Reservation:
    window = Window(_at(reservation.begins_at), _at(reservation.ends_at))
    return catalog.Reservation(reservation.description, window, reservation.partitions, _audience(reservation))


def _at(seconds: float | None) -> Instant | None:
    return None if seconds is None else Instant(round(seconds * 1000))


def _service(service: ServiceConfig, config: Config) -> catalog.Service:
    places: Mapping[SystemName, PlaceConfig] = (
        dict.fromkeys(config.systems, PlaceConfig()) if service.systems is None else service.systems
    )
    return catalog.Service(
        places={name: catalog.Place(service.start_on(place), place.partitions) for name, place in places.items()},
        kind=service.kind,
        version=service.version,
        description=service.description,
        deprecated=(service.instead or "it will be removed") if service.deprecated else "",
        default=service.default,
        kernels={name: _extra(each) for name, each in service.kernels.items()},
        extensions={name: _extra(each) for name, each in service.extensions.items()},
        audience=_audience(service),
    )


def _extra(extra: ExtraConfig) -> catalog.Extra:
    return catalog.Extra(
        extra.description,
        extra.ticked,
        extra.modules,
        extra.environment,
        extra.args,
        extra.systems,
        _audience(extra),
    )
