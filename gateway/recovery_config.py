"""`[recovery]` of the configuration: the HTTP interface for clients that cannot speak the protocol."""

from typing import Annotated

import msgspec
from msgspec import Meta


class RecoverySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See docs/recovery.md; it serves TLS where the gateway does."""

    host: Annotated[str, Meta(description="Address of the recovery HTTP server. Empty: gateway.host.")] = ""
    port: Annotated[
        int,
        Meta(
            ge=0,
            le=65_535,
            description="Port of the recovery HTTP server, from which clients without the protocol read what a session"
            " missed. 0: there is none.",
        ),
    ] = 0
    timeout_ms: Annotated[
        int,
        Meta(ge=100, le=60_000, description="Milliseconds for all that one request asks of routers; then it is 503."),
    ] = 5_000
    page_messages_max: Annotated[
        int, Meta(ge=1, le=10_000, description="Messages in one answer; the client asks again for what is left.")
    ] = 200
    page_bytes_max: Annotated[
        int,
        Meta(
            ge=1_024,
            le=1_048_576,
            description="Bytes of messages in one answer, as MessagePack; at least one message is in it.",
        ),
    ] = 262_144
    requests_max: Annotated[
        int, Meta(ge=1, le=10_000, description="Requests under way at once; one more is answered 503.")
    ] = 64
    user_rate: Annotated[
        int, Meta(ge=1, le=10_000, description="Requests a second of one user, in the long run; more are answered 429.")
    ] = 5
    user_burst: Annotated[int, Meta(ge=1, le=100_000, description="Requests of one user that may come together.")] = 20
