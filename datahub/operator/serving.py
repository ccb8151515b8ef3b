"""A hub's process: its log, its port, and its end. Told to stop, it lets go of its jobs at once, so
that another hub goes on with them, and finishes the requests that are under way.

Knows nothing of what is served.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import threading
from collections.abc import Callable
from types import FrameType
from urllib.parse import urlsplit

import uvicorn
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from datahub import logs
from datahub.config import HubConfig
from datahub.market.desk import Desk, open_desk
from datahub.market.overview import complaints
from datahub.web.api import create_app
from datahub.web.operations import metrics_token
from fl_server.connections import Connection
from fl_server.superlink import operator_token

STOP_S = 10  # for requests under way; what hangs longer is cut off
log = logging.getLogger("datahub.hub")


class Server(uvicorn.Server):
    """uvicorn's, which ends with status 0 and says at once that it ends."""

    def __init__(self, config: uvicorn.Config, ending: Callable[[], None]):
        super().__init__(config)
        self._ending = ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM and SIGINT; the second one waits for nothing."""
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        # not here: whatever lock the signal came upon may be held
        threading.Thread(target=self._ending, daemon=True).start()


def serve(config: HubConfig, host: str, port: int, log_json: bool) -> None:
    """Serve until SIGTERM or SIGINT, then end the process. Raises what opening a hub raises."""
    logs.set_up(as_json=log_json, secrets=secrets_of(config))
    logging.getLogger().addHandler(complaints)
    config.folder.chmod(0o700)  # of a hub that was made by an older version
    # every connection is a file, and a stranger may open many before theirs are ended
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    desk = open_desk(config)
    settings = uvicorn.Config(
        create_app(desk),
        host=host,
        port=port,
        http=Connection,
        log_level="warning",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # no decision here depends on where a request comes from
        timeout_graceful_shutdown=STOP_S,
    )
    server = Server(settings, lambda: let_go(desk))
    log.info("the hub of %s serves on %s:%d", config.folder, host, port)
    server.run()
    log.info("the hub has stopped")
    logging.shutdown()
    sys.stdout.flush()
    # a thread that still waits for a chain or a database would hold the process
    os._exit(0 if server.started else 3)


def let_go(desk: Desk) -> None:
    """What a hub does first when it is told to end: streams end, and its jobs are others'."""
    log.info("the hub stops: its jobs are any other hub's now")
    desk.stopping.set()
    try:
        desk.leases.end()
    except SQLAlchemyError as error:  # others take them when their time is over
        log.warning("the hub could not give up its jobs: %s", type(error).__name__)


def secrets_of(config: HubConfig) -> set[str]:
    """What must stand in no line of this hub's log."""
    chain = urlsplit(config.chain)
    found = {
        config.operator_key,
        config.operator_key.removeprefix("0x"),
        operator_token(config.superlink_folder),
        metrics_token(config.folder),
        make_url(config.database).password or "",
        chain.password or "",
        chain.query,
    }
    return found | set(chain.path.split("/"))
