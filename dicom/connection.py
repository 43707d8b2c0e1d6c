"""One accepted TCP connection: TLS handshake, back-pressure and one deadline. It does not interpret the bytes."""

import asyncio
import contextlib
import socket
import ssl
from typing import cast

WRITE_BYTES = 2**16  # answers that a peer has not fetched; beyond them nothing more is read from it
TCP_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # Linux


class Connection(asyncio.BufferedProtocol):
    """Moves bytes between a peer and a subclass, which interprets them in the methods named `on_…`.

    Nothing is read from the peer while the subclass has paused it, or while the peer does not fetch what was written.
    """

    def __init__(self, address: str, read_buffer: memoryview) -> None:
        """Set up a connection. `read_buffer` may be shared, since bytes are handled before the next read."""
        self.address = address
        self.loop = asyncio.get_running_loop()
        self.heard_at = 0.0
        """When bytes last came, in loop time."""
        self.may_write = True
        self._read_buffer = read_buffer
        self._opening: asyncio.Task[None]
        self._transport: asyncio.Transport
        self._socket: socket.socket | None = None  # the transport's, while connected
        self._paused = False
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0  # uvloop's timers do not know it any more when they fire, before they call

    # --- what a subclass does ---

    def on_connected(self) -> None:
        """Begin: the connection is established, including its TLS handshake."""

    def on_bytes(self, data: memoryview) -> None:
        """Handle bytes that were read; the buffer is overwritten afterwards."""
        raise NotImplementedError

    def on_writable(self) -> None:
        """Continue: the peer has fetched enough of what was written."""

    def on_timer(self) -> None:
        """Move the deadline if the peer is waiting for us."""

    def on_late(self) -> None:
        """End: the deadline has passed."""

    def on_handshake_failed(self, error: OSError) -> None:
        """Report that the connection was not established."""

    def on_gone(self) -> None:
        """Forget the connection: it is closed, or about to be. It may be called again."""

    # --- its life ---

    def open(self, sock: socket.socket, tls: ssl.SSLContext | None, handshake_timeout_s: float) -> None:
        """Begin, with a TLS handshake if there is a TLS context."""
        self._opening = self.loop.create_task(self._open(sock, tls, handshake_timeout_s), name="open")

    async def _open(self, sock: socket.socket, tls: ssl.SSLContext | None, handshake_timeout_s: float) -> None:
        timeout_s = handshake_timeout_s if tls else None
        try:
            await self.loop.connect_accepted_socket(lambda: self, sock, ssl=tls, ssl_handshake_timeout=timeout_s)
        except OSError as error:  # ssl.SSLError and TimeoutError are
            self.on_handshake_failed(error)
        finally:
            if self._socket is None:
                sock.close()
                self.on_gone()

    def drop(self) -> None:
        """Close at once."""
        if self._opening.done():
            self._transport.abort()
        else:
            self._opening.cancel()
        self.on_gone()

    def close(self) -> None:
        """Close once everything that was written has been sent."""
        self._transport.close()
        self.on_gone()

    def finish(self, last: bytes) -> None:
        """Write the last bytes, after which the peer should close. Close at once if there are none."""
        if not last:
            self._transport.close()
            return
        self._transport.write(last)
        if self._transport.can_write_eof():
            with contextlib.suppress(OSError):  # the peer has already gone
                self._transport.write_eof()

    def write(self, data: bytes) -> None:
        """Send bytes. `may_write` says if more may be written."""
        self._transport.write(data)

    def pause(self) -> None:
        """Stop reading; the peer has to wait."""
        self._paused = True
        self._transport.pause_reading()

    def resume(self) -> bool:
        """Read again; return False if it cannot: because nothing may be written, or the connection is closing."""
        if not self.may_write or self._transport.is_closing():
            return False
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return True

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_BYTES)
        self._socket = socket.socket(fileno=transport.get_extra_info("socket").fileno())  # shared; see connection_lost
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.on_connected()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._acknowledge()
        self.heard_at = self.loop.time()
        self.on_bytes(self._read_buffer[:nbytes])

    def _acknowledge(self) -> None:
        """Acknowledge at once. A sender with Nagle's algorithm waits for it, and the kernel would delay it by 40 ms."""
        if self._socket is not None and TCP_QUICKACK is not None:
            try:  # noqa: SIM105 - a context manager costs more than the call
                self._socket.setsockopt(socket.IPPROTO_TCP, TCP_QUICKACK, 1)
            except OSError:
                pass

    def eof_received(self) -> bool:
        return False  # close

    def pause_writing(self) -> None:
        self.may_write = False
        self.pause()

    def resume_writing(self) -> None:
        self.may_write = True
        self.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.detach()  # the transport closes it
            self._socket = None
        self.on_gone()

    # --- time ---

    def expect_within(self, seconds: float) -> None:
        """Set the deadline to so many seconds from now."""
        self._deadline = self.loop.time() + seconds
        if self._timer is None or self._timer_at > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer()

    def _look_at_time(self) -> None:
        """Check the deadline. There is only one timer; if the deadline has moved, it is set again."""
        self._timer = None
        self.on_timer()
        if self._timer is not None:
            return  # on_timer has set a deadline
        if self.loop.time() < self._deadline:
            self._set_timer()
        else:
            self.on_late()

    def _set_timer(self) -> None:
        self._timer, self._timer_at = self.loop.call_at(self._deadline, self._look_at_time), self._deadline
