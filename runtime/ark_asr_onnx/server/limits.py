"""The limits of a service, and who may use it."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from .answers import Failure


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a service."""

    max_upload_bytes: int = 200_000_000
    max_audio_seconds: float = 14_400.0
    max_active: int = 16  # requests whose audio is read at the same time
    max_waiting: int = 32  # requests beyond them
    silent_seconds: float = 30.0  # without a byte, after which an upload is refused
    grace_seconds: float = 30.0  # for running requests when the service ends
    stalled_seconds: float = 60.0  # without a step, after which the service is not ready

    @property
    def max_requests(self) -> int:
        """Requests at the same time, running and waiting."""
        return self.max_active + self.max_waiting


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use a service."""

    keys: frozenset[str] = frozenset()
    origins: tuple[str, ...] = ()  # other origins whose pages may use it; "*" for all
    hosts: frozenset[str] = frozenset()  # allowed host names, in addition to this machine's
    is_loopback: bool = True  # it listens only on this machine

    def refuse(
        self, headers: Mapping[str, str], *, needs_key: bool, writes: bool
    ) -> Failure | None:
        """The failure for a request with these headers; None if it is allowed."""
        host = headers.get("host", "")
        name = host_name(host)
        # No attacker's page has a loopback name, so health checks may always use one.
        is_known = name in self.hosts or is_loopback(name)
        if (self.is_loopback or self.hosts) and not is_known:
            return Failure(
                403, f"this service does not answer to the name {ascii(name)[:80]}; allow it with "
                "--allowed-host", "forbidden_host",
            )  # fmt: skip
        if writes and not self._may_write(headers, host):
            return Failure(
                403, "a page of another origin may not use this service; allow it with "
                "--cors-origin", "forbidden_origin",
            )  # fmt: skip
        if needs_key and self.keys and not self._has_key(headers):
            return Failure(
                401, "no valid key: send Authorization: Bearer KEY, or X-API-Key",
                "invalid_api_key",
            )  # fmt: skip
        return None

    def _may_write(self, headers: Mapping[str, str], host: str) -> bool:
        """Whether a request may come from a page of this origin, or from no page.

        Browsers send simple requests to any site, even if the page may not read the answer. The
        browser's header about the site counts before the host, which a proxy may have changed.
        """
        origin = headers.get("origin")
        if origin is not None and (origin in self.origins or "*" in self.origins):
            return True
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        return origin is None or origin.partition("://")[2] == host != ""

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        matches = [hmac.compare_digest(given.encode(), key.encode()) for key in self.keys]
        return any(matches)


def host_name(host: str) -> str:
    """The name in a ``Host`` header, in lower case and without the port; empty if malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(name: str) -> bool:
    """Whether a host name means this machine, and only on this machine."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
