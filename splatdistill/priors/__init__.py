"""Frozen 2D diffusion models, behind one protocol."""

import socket
from contextlib import suppress


def _import_without_a_socket() -> None:
    """Import urllib3, which comes with diffusers, without the socket that it opens to find out about IPv6.

    Downloads that are asked for go on to use IPv6 where the system's resolver names such an address.
    """
    known, socket.has_ipv6 = socket.has_ipv6, False
    try:
        with suppress(ImportError):
            from urllib3.util import connection

            connection.HAS_IPV6 = known
    finally:
        socket.has_ipv6 = known


_import_without_a_socket()

from splatdistill.priors.loading import load_prior  # noqa: E402

__all__ = ["load_prior"]
