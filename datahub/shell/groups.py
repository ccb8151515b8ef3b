"""Every group of the shell under the name that is typed. Imports no more than their flags need."""

from __future__ import annotations

import typer

import datahub.shell.access  # noqa: F401  its commands join the group of datasets
from datahub.shell.claim import claim
from datahub.shell.data import data
from datahub.shell.job import job
from datahub.shell.model import model
from datahub.shell.moved import Renamed
from datahub.shell.network import network
from datahub.shell.order import order


def add_to(app: typer.Typer) -> None:
    """Give `app` the groups of buyers and contributors."""
    app.add_typer(network, name="network")
    app.add_typer(data, name="data")
    app.add_typer(order, name="order")
    app.add_typer(job, name="job", cls=Renamed)
    app.add_typer(model, name="model")
    app.add_typer(claim, name="claim", cls=Renamed)
