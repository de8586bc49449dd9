"""What a HELLO token must be beside signed; by itself, so that reading the settings needs no PyJWT."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """What is asked of tokens."""

    algorithms: tuple[str, ...] = ("HS256",)
    issuer: str = ""
    """Its `iss`; empty: any."""
    audience: str = ""
    """In its `aud`; empty: it must have none."""
    leeway_s: float = 0.0
    """How far the clocks of the issuer and of the gateway may be apart."""
