"""HTTP/1.1 at a socket, within bounds: what uvicorn leaves to a proxy in front.

A client that sends no whole header in time is cut off. httptools is written in C and takes a third of the CPU time of h11
(docs/serve.md), but has no bound for headers, takes a call with two hosts, and loses the body of a call that offers another
protocol; this is mended here.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    import httptools
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:  # there is no wheel for each interpreter
    HttpToolsProtocol = None  # type: ignore[assignment, misc]

HEADER_SECONDS = 10.0  # in which the header of a call must arrive
HEADER_BYTES = 16 * 1024  # of the address and the headers of a call


class _CutOff(asyncio.Protocol):
    """A part of a protocol of uvicorn, which alone would wait for a header forever."""

    cycle: Any
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """A client has sent something."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    @property
    def _header_is_missing(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self._header_is_missing and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._header_is_missing and self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._cut_off)

    def _cut_off(self) -> None:
        if self._header_is_missing:
            self.transport.close()


class H11(_CutOff, H11Protocol):
    """HTTP by h11, which bounds headers itself."""


if HttpToolsProtocol is None:
    Protocol: type[asyncio.Protocol] = H11
else:

    class HttpTools(_CutOff, HttpToolsProtocol):
        """HTTP by httptools."""

        _header_bytes = 0  # of the present message: what was read
        _unread_bytes = 0  # what was received since it began; httptools keeps a header until it is whole
        _reads_header = True

        def data_received(self, data: bytes) -> None:
            """A client has sent something."""
            self._unset_keepalive_if_required()
            self._unread_bytes += len(data)
            try:
                self.parser.feed_data(data)
                refused = self._reads_header and self._unread_bytes > HEADER_BYTES
            except httptools.HttpParserUpgrade as offer:
                refused = not self._header_is_missing  # it did not even wait for its last answer
                if not refused:
                    self._hand_over(data[offer.args[0] :])
                    return
            except httptools.HttpParserError:
                refused = True
            if refused:
                self.send_400_response("Invalid HTTP request received.")
            self._watch()

        def _should_upgrade(self) -> bool:
            return True  # a call that offers another protocol is not begun here, but handed over

        def _hand_over(self, body: bytes) -> None:
            """Let h11 go on after the headers: a client that offers HTTP/2, as Java's does, is answered in HTTP/1.1."""
            lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
            lines += [b"%s: %s" % header for header in self.headers]
            if self._timer is not None:
                self._timer.cancel()
            self.connections.discard(self)
            successor = H11(self.config, self.server_state, self.app_state, self.loop)
            self.transport.set_protocol(successor)
            successor.connection_made(self.transport)
            successor.data_received(b"\r\n".join([*lines, b"", body]))

        def on_message_begin(self) -> None:
            """A message begins."""
            self._header_bytes, self._unread_bytes, self._reads_header = 0, 0, True
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            """A part of the address."""
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            """A header; after the body it is one of HTTP's trailers, which nobody asks for."""
            self._count(len(name) + len(value))
            if self._reads_header:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            """All headers are there."""
            hosts = sum(name == b"host" for name, _ in self.headers)
            least = {"1.0": 0, "1.1": 1}.get(self.parser.get_http_version(), 2)  # no other version is spoken
            if not least <= hosts <= 1:
                raise ValueError(f"{hosts} hosts")  # RFC 9112, section 3.2
            self._reads_header = False
            super().on_headers_complete()

        def _count(self, size: int) -> None:
            """Count what is kept of a header; an error in a callback becomes status 400."""
            self._header_bytes += size
            if self._header_bytes > HEADER_BYTES:
                raise ValueError("headers too large")

    Protocol = HttpTools
