"""A hub and its SuperLink as services of a machine, as text: systemd units, or a Compose file with
PostgreSQL and nginx. Knows nothing of what a hub does.

The SuperLink takes an operator's word on its own machine only, so that in containers hub and
SuperLink share one network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from datahub.errors import ConfigError

SYSTEMD, COMPOSE = "systemd", "compose"
ITS_OWN = "datahub"  # the user, where nobody else owns the folder

UNIT = """\
# systemd unit of a datahub {what}. As root:
#   {needs_user}install -m 644 {name}.service /etc/systemd/system/
#   systemctl daemon-reload && systemctl enable --now {name}
# Its log, rotated by the journal: journalctl -u {name}
[Unit]
Description=datahub {what} ({plain_folder})
Wants=network-online.target
After=network-online.target time-sync.target postgresql.service {after}
# it is started again for ever: chain and database may be away for any length
StartLimitIntervalSec=0

[Service]
Type=exec
User={user}
ExecStart={program} hub {verb} {argument}{flags}
Restart=always
RestartSec=5
KillMode=mixed
TimeoutStopSec=30
StandardOutput=journal
StandardError=journal
SyslogIdentifier={name}
UMask=0077
Environment=FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
LimitNOFILE=65536
MemoryMax=80%

ProtectSystem=strict
ReadWritePaths={folder}
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
"""

IMAGE = """\
# Image file of a datahub hub and SuperLink. Its context is a checkout of datahub (compose.yaml).
FROM docker.io/library/python:{python}-slim
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY datatokens /src/datatokens
COPY fl_client /src/fl_client
COPY fl_server /src/fl_server
COPY datahub /src/datahub
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[postgresql]" && rm -rf /src
ENV FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 HOME=/tmp PYTHONUNBUFFERED=1
STOPSIGNAL SIGTERM
ENTRYPOINT ["datahub", "hub"]
"""

COMPOSE_FILE = """\
# A datahub hub with its SuperLink behind nginx, on PostgreSQL. Beside this file:
#   Containerfile, nginx.conf   as written with it
#   tls/fullchain.pem, tls/privkey.pem   the certificate of {host}
#   database.password   one line; as FOLDER/hub.toml has it in its database:
#     database = "postgresql+psycopg://datahub:PASSWORD@database/datahub"
# and in FOLDER/hub.toml besides:
#     superlink = "{host}:{port}"
#     superlink_here = "127.0.0.1:{port}"
#     behind_proxy = true
# then: DATAHUB_SOURCE=/path/to/a/checkout docker compose up --detach --build
services:
  database:
    image: docker.io/library/postgres:17
    environment:
      POSTGRES_USER: datahub
      POSTGRES_DB: datahub
      POSTGRES_PASSWORD_FILE: /run/secrets/database
    secrets: [database]
    volumes: ["database:/var/lib/postgresql/data"]
    healthcheck:
      test: ["CMD", "pg_isready", "--username=datahub"]
      interval: 5s
      retries: 20
    restart: always
  superlink: &datahub
    image: datahub-hub
    build:
      context: ${{DATAHUB_SOURCE:?a checkout of datahub}}
      dockerfile: ${{PWD}}/Containerfile
    command: ["superlink", {folder}, "--host", "0.0.0.0"]
    user: "{uid}:{gid}"
    volumes:
      - type: bind
        source: {folder}
        target: {folder}
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    stop_grace_period: 30s
    restart: always
  hub:
    <<: *datahub
    command: ["start", {folder}, "--host", "0.0.0.0", "--log-json"]
    network_mode: "service:superlink"
    depends_on:
      database: {{condition: service_healthy}}
      superlink: {{condition: service_started}}
    healthcheck:
      test:
        - CMD
        - python
        - -c
        - "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=5)"
      interval: 10s
      start_period: 120s
  nginx:
    image: docker.io/library/nginx:1.29
    volumes:
      - ./nginx.conf:/etc/nginx/nginx.conf:ro
      - ./tls:/etc/nginx/tls:ro
    ports: ["80:80", "443:443", "{port}:{port}"]
    depends_on: [hub]
    restart: always
volumes:
  database:
secrets:
  database:
    file: ./database.password
"""

NGINX = """\
# nginx before a datahub hub and its SuperLink.
worker_processes auto;
events {{ worker_connections 4096; }}

http {{
    server_tokens off;
    limit_conn_zone $binary_remote_addr zone=clients:10m;

    upstream hub {{
        server {hub}:8000;
        # a further hub on the same database: server {hub}:8001;
        keepalive 32;
    }}

    server {{
        listen 80;
        return 301 https://$host$request_uri;
    }}

    server {{
        listen 443 ssl;
        server_name {host};
        ssl_certificate {tls}/fullchain.pem;
        ssl_certificate_key {tls}/privkey.pem;
        ssl_protocols TLSv1.2 TLSv1.3;

        limit_conn clients 100;
        client_max_body_size 192m;      # a model's graph and weights
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        # one address, the client's: what a client wrote itself is not passed on
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Request-ID $request_id;
        proxy_read_timeout 120s;

        location / {{
            proxy_pass http://hub;
        }}
        location ~ ^/api/v1/jobs/[^/]+/events$ {{
            proxy_pass http://hub;
            proxy_buffering off;         # server-sent events, as they come
            proxy_cache off;
            proxy_read_timeout 60s;      # the hub says something every 15 s
        }}
        location = /metrics {{ return 404; }}   # Prometheus asks the hub itself
        location = /readyz {{ return 404; }}
    }}
}}

# the SuperLink has TLS of its own, by which nodes are known: passed on as it is
stream {{
    server {{
        listen {port};
        proxy_pass {superlink}:{inner};
        proxy_timeout 10m;
    }}
}}
"""


def units(
    folder: PurePosixPath, program: PurePosixPath, user: str, superlink_host: str
) -> Mapping[str, str]:
    """File name -> systemd unit, of hub and SuperLink, for the hub in `folder` (absolute), run by
    `program` as `user`; "" or root becomes a user of its own. Raises ConfigError.
    """
    for one in (folder, program):
        _plain(one)
        if any(one.is_relative_to(hidden) for hidden in ("/tmp", "/var/tmp")):  # noqa: S108
            raise ConfigError(
                f"{one} is in a folder for temporary files, which a service does not see; move it"
            )
    make = ""
    if user in ("", "root"):
        user = ITS_OWN
        make = f"useradd --system {user}; chown -R {user} {_shell(folder)}\n#   "
    if not user.isascii() or not user.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ConfigError(f"user={user!r:.80} is no name that systemd takes")
    parts = {
        "datahub-hub": ("hub", "start", "", "datahub-superlink.service"),
        "datahub-superlink": ("SuperLink", "superlink", f" --host {superlink_host}", ""),
    }
    return {
        f"{name}.service": UNIT.format(
            what=what,
            name=name,
            verb=verb,
            flags=flags,
            after=after,
            needs_user=make,
            plain_folder=str(folder).replace("%", "%%"),
            folder=_quoted(folder),
            program=_quoted(program).replace("$", "$$"),
            argument=_quoted(folder).replace("$", "$$"),
            user=user,
        )
        for name, (what, verb, flags, after) in parts.items()
    }


def compose(
    folder: PurePosixPath, ids: tuple[int, int], superlink: str, python: str
) -> Mapping[str, str]:
    """File name -> text: compose.yaml, Containerfile, nginx.conf, for the hub in `folder`
    (absolute), whose owner's `ids` are (user, group) and which hospitals reach at `superlink`
    (host:port). Raises ConfigError.
    """
    _plain(folder)
    host, _, port = superlink.rpartition(":")
    if any(mark in str(folder) for mark in "\"'\\:$") or not port.isdecimal():
        raise ConfigError(f"{folder} or {superlink!r} cannot stand in a Compose file; rename it")
    if not host.replace("-", "").replace(".", "").isalnum():
        raise ConfigError(f"superlink={superlink!r} must name a host that hospitals reach")
    if ids[0] == 0:
        raise ConfigError(f"{folder} is root's: give it to a user of its own (chown) first")
    values = {
        "folder": f'"{folder}"',
        "uid": ids[0],
        "gid": ids[1],
        "host": host,
        "port": port,
        "python": python,
    }
    return {
        "compose.yaml": COMPOSE_FILE.format(**values),
        "Containerfile": IMAGE.format(**values),
        "nginx.conf": NGINX.format(
            hub="superlink", superlink="superlink", inner=port, tls="/etc/nginx/tls", **values
        ),
    }


def _plain(path: PurePosixPath) -> None:
    if not path.is_absolute() or not str(path).isprintable():
        raise ConfigError(f"{str(path)!r:.200} must be a whole path of printable characters")


def _quoted(path: PurePosixPath) -> str:
    """A path as systemd reads it in a list; in a command, $ stands twice besides."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def _shell(path: PurePosixPath) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"
