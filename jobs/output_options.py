"""What the commands share that work on an output that is there: how it is named, reached and leased."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.lease import Lease
    from pipelines.storage import Storage


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The argument OUTPUT with `--config` and `--set`: the command gets `output`, `config` and `overrides`."""
    for decorate in (
        click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="An option of the config."),
        click.option("--config", help="The run's YAML file, for storage and lease; see configs/."),
        click.argument("output"),
    ):
        function = decorate(function)
    return function


def open_output(output: str, config: str | None, overrides: tuple[str, ...]) -> tuple[Storage, RunConfig]:
    """The storage of an output, and the config that says how it is reached.

    Raises:
        UnusableInputError: for a config or an address that cannot be used.
    """
    from pipelines.config import RunConfig
    from pipelines.storage import Storage

    settings = RunConfig.load(config, overrides)
    return Storage(output, settings.storage.storage_options, attempts=settings.storage.attempts), settings


def lease_for(name: str, storage: Storage, config: RunConfig) -> Lease:
    """The lease that a command needs to change an output: no run may be at work meanwhile.

    Raises:
        OutputError: where there is no catalog; a lease there would be all that is.
    """
    from pipelines.errors import OutputError
    from pipelines.lease import Lease
    from pipelines.plan import PlanRecord

    if PlanRecord.read(storage) is None:
        raise OutputError(f"output {storage.url}: there is no catalog")
    times = config.lease
    return Lease(storage, name, heartbeat_seconds=times.heartbeat_seconds, stale_seconds=times.stale_seconds)
