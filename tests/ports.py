"""TCP ports for the servers of tests.

The system gives away the port of a closed listener again at once, and a daemon of another test, in the other process, may
still connect to it. So each process takes its ports from a range of its own, one after the other, outside the range from
which the system gives ports to clients (32768 and up on Linux).
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket

_FIRST = 11_000
_PORTS_PER_PROCESS = 21_000 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def _range() -> list[int]:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    first = _FIRST + int(worker) * _PORTS_PER_PROCESS
    # Another run beside this one begins somewhere else.
    start = random.SystemRandom().randrange(_PORTS_PER_PROCESS)
    return [first + (start + step) % _PORTS_PER_PROCESS for step in range(_PORTS_PER_PROCESS)]


_NEXT = itertools.cycle(_range())


def listening(host: str = "127.0.0.1", backlog: int = 128) -> socket.socket:
    """A listener on the next port that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(_PORTS_PER_PROCESS):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, next(_NEXT)))
            listener.listen(backlog)
        except OSError:
            listener.close()
            continue
        return listener
    raise AssertionError(f"no port is free on {host}")


def free_port() -> int:
    """A port that nobody listens on, on 127.0.0.1 and, if there is IPv6, on ::1 as well."""
    for _ in range(50):
        with listening() as four:
            port: int = four.getsockname()[1]
            if not socket.has_ipv6:
                return port
            with socket.socket(socket.AF_INET6) as six:
                try:
                    six.bind(("::1", port))
                except OSError as cause:
                    if cause.errno == errno.EADDRINUSE:  # any other error: this machine has no IPv6
                        continue
            return port
    raise AssertionError("no port is free on both loopback addresses")
