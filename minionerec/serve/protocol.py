"""HTTP/1.1 at a socket, within bounds: what uvicorn leaves to a proxy in front.

A client that sends no whole header in time, or takes nothing of its answer for a time, is cut off. httptools is written in C
and takes a third of the CPU time of h11 (docs/serve.md), but has no bound for headers, takes a call with two hosts, loses the
body of a call that offers another protocol, and refuses a malformed call before the calls ahead of it are answered; this is
mended here.
"""

import asyncio
from typing import Any
from weakref import WeakSet

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

try:
    import httptools
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:  # there is no wheel for each interpreter
    HttpToolsProtocol = None  # type: ignore[assignment, misc]

HEADER_SECONDS = 10.0  # in which the header of a call must arrive
HEADER_BYTES = 16 * 1024  # of the address and the headers of a call
UNREAD_SECONDS = 30.0  # in which a client must take something of what waits to be sent to it

_looked_after: WeakSet[ServerState] = WeakSet()


class _CutOff(asyncio.Protocol):
    """A part of a protocol of uvicorn, which alone would wait forever for a header, and for a client that does not read.

    One timer looks after all connections of a server: a timer for each call would cost it more than all else here.
    """

    cycle: Any
    loop: asyncio.AbstractEventLoop
    server_state: ServerState
    transport: asyncio.Transport
    _waits_since = 0.0  # for a header; 0 while it waits for none
    _unsent, _unsent_since = 0, 0.0  # bytes, and since when it is not fewer

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self._watch()
        if self.server_state not in _looked_after:
            _looked_after.add(self.server_state)
            self.loop.call_later(HEADER_SECONDS / 10, _look, self.server_state, self.loop)

    def data_received(self, data: bytes) -> None:
        """A client has sent something."""
        super().data_received(data)
        self._watch()

    @property
    def _header_is_missing(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self._header_is_missing:
            self._waits_since = 0.0
        elif not self._waits_since:
            self._waits_since = self.loop.time()

    def cut_off(self, now: float) -> None:
        """Cut the client off if it keeps the service waiting."""
        if self._waits_since and now - self._waits_since > HEADER_SECONDS and self._header_is_missing:
            self.transport.close()
        unsent = self.transport.get_write_buffer_size()
        if not self._unsent or unsent < self._unsent:
            self._unsent_since = now
        elif now - self._unsent_since > UNREAD_SECONDS:
            self.transport.abort()  # `close` would wait until it is sent
        self._unsent = unsent


def _look(state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
    for connection in list(state.connections):
        if isinstance(connection, _CutOff):
            connection.cut_off(loop.time())
    if state.connections:
        loop.call_later(HEADER_SECONDS / 10, _look, state, loop)
    else:
        _looked_after.discard(state)


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
        _unanswered = 0  # calls whose headers are read
        _refused = False  # whether a malformed call has come: nothing after it is read

        def data_received(self, data: bytes) -> None:
            """A client has sent something."""
            self._unset_keepalive_if_required()
            if self._refused:
                return
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
                self._refuse()
            self._watch()

        def _refuse(self) -> None:
            """Refuse a malformed call, once all calls ahead of it are answered."""
            self._refused = True
            if self._unanswered and self.cycle.more_body and not self.cycle.response_complete:  # its headers were well-formed
                if self.cycle.response_started:
                    self.transport.close()
                    return
                if self.pipeline:
                    self.pipeline.popleft()
                self._unanswered -= 1
            if not self._unanswered:
                self.send_400_response("Invalid HTTP request received.")

        def on_response_complete(self) -> None:
            """A call is answered."""
            super().on_response_complete()
            self._unanswered -= 1
            if self._refused and not self._unanswered and not self.transport.is_closing():
                self.send_400_response("Invalid HTTP request received.")

        def _should_upgrade(self) -> bool:
            return True  # a call that offers another protocol is not begun here, but handed over

        def _hand_over(self, body: bytes) -> None:
            """Let h11 go on after the headers: a client that offers HTTP/2, as Java's does, is answered in HTTP/1.1."""
            lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
            lines += [b"%s: %s" % header for header in self.headers]
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
            self._reads_header, before = False, self.cycle
            super().on_headers_complete()
            self._unanswered += self.cycle is not before  # a call that offers another protocol is not begun here

        def _count(self, size: int) -> None:
            """Count what is kept of a header; an error in a callback becomes status 400."""
            self._header_bytes += size
            if self._header_bytes > HEADER_BYTES:
                raise ValueError("headers too large")

    Protocol = HttpTools
