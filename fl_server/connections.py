"""uvicorn's connections, for hosts that strangers reach: the head of a request has an end, and does
not take for ever.

By h11, since httptools would hold a head, or trailers, of any length. Knows nothing of what is
asked.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

BODY_S = 1.0  # for a body that is still coming when the server ends
HEAD_S = 20.0  # for a connection's first request; the next ones have uvicorn's timeout_keep_alive


class Connection(H11Protocol):
    """Ends by itself where no request begins: uvicorn waits for the first one for ever, and stops
    its clock at the first byte of another.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's, with a clock."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(HEAD_S, self.timeout_keep_alive_handler)

    def shutdown(self) -> None:
        """As uvicorn's; who still sends a body is not waited for beyond BODY_S."""
        super().shutdown()
        self.loop.call_later(BODY_S, self._cut)

    def _cut(self) -> None:
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's; the clock stops when the whole head is there."""
        clock, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        super().data_received(data)
        if clock is not None and self.conn.their_state is h11.IDLE:
            self.timeout_keep_alive_task = clock
        elif clock is not None:
            clock.cancel()
