"""Which address a request comes from: behind the proxies that TRUSTED_PROXIES counts, and with a household as one."""

from ipaddress import IPv6Address, ip_address

from flask import Flask, request
from werkzeug.middleware.proxy_fix import ProxyFix

from config import Settings


def init_app(app: Flask, settings: Settings) -> None:
    """Take the address from X-Forwarded-For where there are proxies to trust."""
    if settings.trusted_proxies:
        # Of all that a proxy says the address alone: the other numbers stay 0, and links owe nothing to a header.
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=settings.trusted_proxies, x_proto=0)  # type: ignore[method-assign]


def network() -> str:
    """The address of the client: in IPv6 the /64, of which one household has every address."""
    try:
        address = ip_address(request.remote_addr or "")
    except ValueError:
        # All that have none, a socket of Unix or what a proxy made up, are one.
        return ""
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or f"{int(address) >> 64:x}::/64")
