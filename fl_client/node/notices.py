"""Tells people that a job waits: a POST to a URL, an e-mail. Says which job, of which dataset, by
when, and where to look: nothing of data, counts or epsilon. In a thread of its own: who does not
answer delays nothing. Knows nothing of how jobs are decided.
"""

from __future__ import annotations

import logging
import smtplib
import threading
from datetime import UTC, datetime
from email.message import EmailMessage

import httpx

from datatokens.terms import JobTerms
from fl_client.node import gate
from fl_client.node.config import NodeConfig
from fl_client.protocol import Waiting

log = logging.getLogger("datahub.node")

PATIENCE_S = 20.0
MOST = 20  # that are being sent at a time; what comes then is not sent, the inbox has it
_SENDING = threading.BoundedSemaphore(MOST)


def tell(config: NodeConfig, terms: JobTerms, waits: Waiting) -> None:
    """Tell whoever is named in node.toml, in the background."""
    if not config.notify.webhook and not config.notify.smtp:
        return
    if not _SENDING.acquire(blocking=False):
        log.warning("nobody was told that job %s waits: too many at once", terms.job_id.hex()[:12])
        return
    try:
        arguments = (config, gate.notice(notice(config, terms, waits)))
    except gate.Stopped as error:
        log.error("nobody was told that job %s waits: %s", terms.job_id.hex()[:12], error)
        _SENDING.release()
        return
    threading.Thread(target=_send, args=arguments, daemon=True, name="notice").start()


def notice(config: NodeConfig, terms: JobTerms, waits: Waiting) -> dict[str, str]:
    """What is said."""
    ours = next((one for one in terms.datasets if one.node in config.node_keys), None)
    return {
        "event": "job waits",
        "node": config.name,
        "job": terms.job_id.hex(),
        "dataset": str(ours.dataset_id) if ours else "",
        "until": f"{datetime.fromtimestamp(waits.until, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "look": f"datahub node inbox {config.folder}",
    }


def _send(config: NodeConfig, said: dict[str, str]) -> None:
    try:
        if config.notify.webhook:
            answer = httpx.post(config.notify.webhook, json=said, timeout=PATIENCE_S)
            answer.raise_for_status()
        if config.notify.smtp:
            _mail(config, said)
    except (OSError, httpx.HTTPError, smtplib.SMTPException, ValueError) as error:
        log.warning("telling people that job %s waits has failed: %s", said["job"][:12], error)
    finally:
        _SENDING.release()


def _mail(config: NodeConfig, said: dict[str, str]) -> None:
    notify = config.notify
    letter = EmailMessage()
    letter["Subject"] = f"{config.name}: a job waits for a yes or no until {said['until']}"
    letter["From"], letter["To"] = notify.mail_from, ", ".join(notify.mail_to)
    letter.set_content("\n".join(f"{name}: {value}" for name, value in said.items()))
    host, _, port = notify.smtp.rpartition(":")
    with smtplib.SMTP(host, int(port), timeout=PATIENCE_S) as server:
        if server.has_extn("starttls"):
            server.starttls()
        server.send_message(letter)
