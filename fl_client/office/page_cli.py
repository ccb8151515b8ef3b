"""The command that opens the local page. Parses and prints only; added to `datahub node` by
datahub/cli.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_client.errors import ConfigError
from fl_client.node import config as node_config


def page(
    folder: Annotated[Path, typer.Argument(help="The node's folder.")],
    port: Annotated[
        int, typer.Option(help="Port on this machine; 0 for any that is free.", min=0, max=65535)
    ] = 0,
    metrics: Annotated[
        bool,
        typer.Option("--metrics", help="Serve /metrics for Prometheus, on this machine."),
    ] = False,
) -> None:
    """Open the local page: jobs that wait, with everything about them, and buttons for yes and no.

    Prints one link, which works once, on this machine alone; runs until stopped. From another
    machine: ssh -L PORT:127.0.0.1:PORT.
    """
    from fl_client.office.door import Door
    from fl_client.office.page import open_socket, serve

    node_config.read(folder)
    try:
        listening = open_socket(port)
    except OSError as error:
        raise ConfigError(f"port={port}: {error.strerror or error}; choose another") from error
    port = listening.getsockname()[1]
    door = Door(port)
    typer.echo(f"http://127.0.0.1:{port}/enter?token={door.token}")
    serve(folder, listening, door, metrics)
