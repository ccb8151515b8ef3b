"""The Flower bundle (FAB) of every datahub job: metadata only, the same bytes everywhere.

A stock SuperNode unpacks a bundle and runs the code in it. Ours names the bundle's hash on both
sides and never unpacks anything: what runs at a hospital is the `fl_client` that the hospital
installed. Knows nothing of jobs.
"""

from __future__ import annotations

import hashlib
from functools import cache

from flwr.cli.build import build_fab_from_files

PYPROJECT = b"""\
[project]
name = "datahub-job"
version = "1.0.0"
description = "Metadata of a datahub job; both sides run their own installed packages."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "datahub"
fab-include = ["README.md"]

[tool.flwr.app.components]
serverapp = "fl_server.app:app"
clientapp = "fl_client.node.handlers:app"

[tool.flwr.app.config]
job-id = ""
"""
README = b"This bundle carries no code: each side runs the package that it has installed.\n"


@cache
def build_bundle() -> bytes:
    """The bundle's bytes (about 1 KB, the same on every machine)."""
    content: bytes = build_fab_from_files({"pyproject.toml": PYPROJECT, "README.md": README})[0]
    return content


def bundle_hash() -> str:
    """SHA-256 of the bundle as the SuperLink reports it for a run."""
    return hashlib.sha256(build_bundle()).hexdigest()
