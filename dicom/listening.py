"""Open the DICOM port, for one process or for several workers."""

import socket

from common.connections import notice_death
from common.errors import SeriesGatewayError
from common.settings import GatewaySettings

BACKLOG = 1024  # most connections that wait to be accepted


class CannotListen(SeriesGatewayError):
    """The DICOM port cannot be bound."""

    def __init__(self, settings: GatewaySettings, error: OSError) -> None:
        super().__init__(
            f"cannot listen on GATEWAY_SCP_HOST={settings.scp_host} GATEWAY_SCP_PORT={settings.scp_port}: "
            f"{error.strerror}. Stop the program that uses it, or choose another address or port (port 0 takes a free "
            "one)."
        )


def listen(settings: GatewaySettings) -> socket.socket:
    """Return a non-blocking socket that listens. Raises CannotListen."""
    host = settings.scp_host
    try:
        listener = socket.create_server(
            (host, settings.scp_port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=BACKLOG,
            reuse_port=settings.workers > 1,
        )
    except OSError as error:
        raise CannotListen(settings, error) from error
    listener.setblocking(False)
    notice_death(listener)
    return listener


def reserve(settings: GatewaySettings) -> socket.socket:
    """Return a socket that reserves the port for the workers and does not listen. Raises CannotListen."""
    family = socket.AF_INET6 if ":" in settings.scp_host else socket.AF_INET
    reserved = socket.socket(family)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        reserved.bind((settings.scp_host, settings.scp_port))
    except OSError as error:
        reserved.close()
        raise CannotListen(settings, error) from error
    return reserved
