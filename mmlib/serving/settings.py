"""The limits of the service, in one place."""

import math
from dataclasses import dataclass

__all__ = ["Settings"]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """What the service allows.

    Attributes:
        max_bytes: Of a request's body.
        max_pixels: Of a picture, width times height, before it is decoded.
        max_batch: Requests that a function answers at once.
        max_wait: Seconds that the first request of a batch waits for others.
        max_queue: Requests that wait for a function; one more is refused with status 429.
        timeout: Seconds from the acceptance of a request to its answer; then status 504.
        body_timeout: Seconds that a client may take to send a body; then status 408.
        grace: Seconds that a shutdown waits for what was accepted.
        token: What a client must send as ``Authorization: Bearer …``; None asks for nothing.
        hosts: Names by which the service may be called (the header ``Host``, without the port).
            Without that check a foreign web page could reach a service on the reader's own
            machine by pointing its own name there (DNS rebinding). Empty allows every name.

    Raises:
        ValueError: a number out of its range, or an empty token.
    """

    max_bytes: int = 5_000_000
    max_pixels: int = 16_000_000
    max_batch: int = 16
    max_wait: float = 0.002
    max_queue: int = 64
    timeout: float = 10.0
    body_timeout: float = 10.0
    grace: float = 20.0
    token: str | None = None
    hosts: tuple[str, ...] = LOOPBACK

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_batch", "max_queue"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        for name in ("timeout", "body_timeout", "grace"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite: got {getattr(self, name)}")
        if not 0 <= self.max_wait < math.inf:
            raise ValueError(f"max_wait must be at least 0 and finite: got {self.max_wait}")
        if self.token is not None and not (self.token.isascii() and self.token.strip()):
            raise ValueError("token must be ASCII and not empty")
