"""`acestep serve`: the API and the page on this machine, without a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click


@click.command(context_settings={"max_content_width": 110})
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML; see configs/serve.yaml."
)
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change one option; may be given many times.")
@click.option("--checkpoint", help="tiny, a folder, a hub id or an fsspec URL. [default: tiny]")
@click.option("--host", help="Address to listen on; 0.0.0.0 for all. [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on. [default: 7865]")
@click.option("--store", help="Folder or URL for records and audio. [default: out/serve]")
@click.option("--open/--no-open", "show", default=None, help="Open the page in a browser. [default: at a terminal]")
def command(overrides: tuple[str, ...], **options: Any) -> None:
    """Serve the HTTP API and the page at http://localhost:7865.

    The model computes on the GPU if there is one. On a Ray cluster, use `serve deploy configs/serve.yaml`.
    """
    start(overrides=overrides, **options)


def start(
    *,
    config: Path | None = None,
    overrides: tuple[str, ...] = (),
    checkpoint: str | None = None,
    host: str | None = None,
    port: int | None = None,
    store: str | None = None,
    show: bool | None = None,
) -> None:
    """Serve until somebody ends it. Exit codes: 2, it could not start; 130 and 143, Ctrl-C and SIGTERM."""
    from acestep.errors import ACEStepError
    from jobs.log import start_logging
    from pipelines.errors import ConfigError
    from serve.config_file import load_config

    start_logging()
    given = {"model.checkpoint": checkpoint, "http.host": host, "http.port": port, "store": store}
    short = [f"{name}={value}" for name, value in given.items() if value is not None]
    try:
        settings = load_config(config, [*short, *overrides])
        _serve(settings, sys.stdout.isatty() if show is None else show)
    except (ACEStepError, ConfigError, ValueError, OSError) as error:
        print(f"acestep serve: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"stopped; jobs that are not over go on with the next server on {settings.store}", file=sys.stderr)
        sys.exit(130)


def _serve(settings: Any, show: bool) -> None:
    import os

    from pipelines.lease import Lease
    from serve.local import LocalServer, require_port
    from serve.service import Service

    def ready(url: str) -> None:
        print(f"The page: {url}   API: {url}/docs   (Ctrl-C ends it; songs: {settings.store})", flush=True)
        if show:
            import webbrowser

            webbrowser.open(url)

    require_port(settings.http)
    with Lease(Service.storage_of(settings), f"server-{os.getpid()}"):
        LocalServer(settings).serve(ready)


if __name__ == "__main__":
    command()
