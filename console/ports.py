"""Whether an address can be listened on, and by which address another machine sees this one."""

import os
import socket
from contextlib import closing

from console.findings import Finding, failed, ok


def bind(what: str, host: str, port: int, change: str) -> Finding:
    """By listening for a moment. `change` names what an operator can change: settings, options."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host, port)
        with closing(socket.create_server((host, port), family=family)):
            return ok(what, f"{host}:{port} can be bound" if port else "any free one")
    except PermissionError:
        return failed(what, f"{host}:{port}: ports below 1024 are root's", f"Choose one above 1023: change {change}.")
    except socket.gaierror:
        return failed(
            what, f"no address belongs to the name {host}", f"Give an address of this machine: change {change}."
        )
    except OSError as error:
        cure = f"Stop what uses it (`ss -ltnp` shows who; it is none of ours on these files), or change {change}."
        return failed(what, f"{host}:{port} cannot be bound: {os.strerror(error.errno or 0)}", cure)


def address_towards(host: str) -> str:
    """This machine's address on the way to `host`, or its name where there is none. No packet is sent."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as sock:
            sock.connect(address)
            return str(sock.getsockname()[0])
    except OSError:
        return socket.gethostname()
