"""The client's address, read from the headers of TRUSTED_PROXIES proxies. All IPv6 addresses of a household are one."""

from ipaddress import IPv6Address, ip_address

from flask import Flask, request
from werkzeug.middleware.proxy_fix import ProxyFix

from config import Settings


def init_app(app: Flask, settings: Settings) -> None:
    """Take the address from X-Forwarded-For, if there are proxies to trust."""
    if settings.trusted_proxies:
        # Only the address: with the other numbers at 0, no header can change a link.
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=settings.trusted_proxies, x_proto=0)  # type: ignore[method-assign]


def network() -> str:
    """Return the client's address. For IPv6 its /64, because one household has all addresses of a /64."""
    try:
        address = ip_address(request.remote_addr or "")
    except ValueError:
        # No valid address: a Unix socket, or an invalid header of the proxy. All of these count as one client.
        return ""
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or f"{int(address) >> 64:x}::/64")
