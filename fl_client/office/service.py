"""A node as a service of the machine: a systemd unit, or an image file for containers, as text.
Knows nothing of what a node does, only what its workers' walls need of what is around them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath

from fl_client.errors import ConfigError

SYSTEMD, OCI = "systemd", "oci"
ITS_OWN = "datahub"  # the user, where nobody else owns the folder
IN_IMAGE = 10001
HIDDEN = tuple(PurePosixPath(name) for name in ("/tmp", "/var/tmp"))  # noqa: S108 by PrivateTmp

UNIT = """\
# systemd unit of a datahub node. As root:
#   {needs_user}install -m 644 THIS_FILE /etc/systemd/system/datahub-node.service
#   systemctl daemon-reload && systemctl enable --now datahub-node
# Its log, rotated by the journal: journalctl -u datahub-node
[Unit]
Description=datahub node ({plain_folder})
Wants=network-online.target
After=network-online.target time-sync.target
# it is started again for ever: the hub, the SuperLink or the chain may be away for any length
StartLimitIntervalSec=0

[Service]
Type=exec
User={user}
ExecStart={program} node start {argument}
Restart=always
RestartSec=5
KillMode=mixed
TimeoutStopSec=30
StandardOutput=journal
StandardError=journal
SyslogIdentifier=datahub-node
UMask=0077
Environment=FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

# a job's worker that takes too much memory is killed alone; the node goes on
MemoryMax=90%
OOMPolicy=continue
TasksMax={tasks}

ProtectSystem=strict
ReadWritePaths={folder}
ProtectHome=read-only
PrivateTmp=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectKernelModules=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
# Not here, as each job is shut in by the node itself, or trains by them: RestrictNamespaces and
# SystemCallFilter (a worker makes namespaces, Landlock and seccomp of its own), PrivateDevices and
# ProtectClock (they hide GPUs), MemoryDenyWriteExecute (models are compiled), ProcSubset.
# See what holds: datahub node walls FOLDER, as this user.

[Install]
WantedBy=multi-user.target
"""

IMAGE = """\
# Image file of a datahub node, for podman or docker. In a checkout of datahub:
#   podman build -t datahub-node -f THIS_FILE .
# No key and no table is in the image: the node's folder, and each table where its source names it,
# are mounted when it runs. The engine's own seccomp profile and masks forbid the namespaces that
# shut jobs in; without these, see with the last line here which walls are left:
#   podman run -d --name datahub-node --restart=always --userns=keep-id --user {uid}:{gid} \\
#     --cap-drop=all --security-opt=no-new-privileges --security-opt=seccomp=unconfined \\
#     --security-opt=unmask=ALL --read-only --tmpfs=/tmp \\
#     {mounts} datahub-node
#   podman exec datahub-node datahub node preflight {plain_folder}
FROM docker.io/library/python:{python}-slim
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY datatokens /src/datatokens
COPY fl_client /src/fl_client
COPY fl_server /src/fl_server
COPY datahub /src/datahub
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[pictures,postgresql]" && rm -rf /src
ENV FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 HOME=/tmp PYTHONUNBUFFERED=1
USER {uid}:{gid}
STOPSIGNAL SIGTERM
ENTRYPOINT ["datahub", "node"]
CMD ["start", {quoted_folder}]
"""


def unit(folder: PurePosixPath, program: PurePosixPath, user: str, tasks: int) -> str:
    """A systemd unit for the node in `folder` (absolute), run by `program` as `user`; "" or root
    becomes a user of its own. Raises ConfigError for what systemd could not be told.
    """
    for one in (folder, program):
        _plain(one)
        if any(one.is_relative_to(hidden) for hidden in HIDDEN):
            raise ConfigError(
                f"{one} is in a folder for temporary files, which a service does not see; move it"
            )
    make = ""
    if user in ("", "root"):
        user = ITS_OWN
        make = f"useradd --system {user} && chown -R {user} {_shell(folder)}\n#   "
    if not user.isascii() or not user.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ConfigError(f"user={user!r:.80} is no name that systemd takes")
    return UNIT.format(
        needs_user=make,
        plain_folder=str(folder).replace("%", "%%"),
        folder=_quoted(folder),
        program=_quoted(program).replace("$", "$$"),
        argument=_quoted(folder).replace("$", "$$"),
        user=user,
        tasks=tasks,
    )


def image(
    folder: PurePosixPath, tables: Iterable[PurePosixPath], ids: tuple[int, int], python: str
) -> str:
    """A Containerfile for the node in `folder` (absolute), whose tables lie in the folders
    `tables`, for a Python like "3.12"; `ids` own the folder, and root becomes a user of its own.
    """
    uid, gid = (IN_IMAGE, IN_IMAGE) if ids[0] == 0 else ids
    read = sorted({one for one in tables if not one.is_relative_to(folder)})
    mounts = [f"-v {_shell(folder)}:{_shell(folder)}"]
    mounts += [f"-v {_shell(one)}:{_shell(one)}:ro" for one in read]
    for one in (folder, *read):
        _plain(one)
        if ":" in str(one):
            raise ConfigError(f"{one} holds a colon, so that it cannot be mounted; move it")
    return IMAGE.format(
        uid=uid,
        gid=gid,
        mounts=" ".join(mounts),
        plain_folder=_shell(folder),
        quoted_folder=json.dumps(str(folder)),
        python=python,
    )


def _plain(path: PurePosixPath) -> None:
    if not path.is_absolute() or not str(path).isprintable():
        raise ConfigError(f"{str(path)!r:.200} must be a whole path of printable characters")


def _quoted(path: PurePosixPath) -> str:
    """A path as systemd reads it in a list; in a command, $ stands twice besides."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def _shell(path: PurePosixPath) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"
