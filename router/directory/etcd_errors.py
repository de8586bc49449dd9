"""What a status that etcd answers with means to us, and what whoever runs it can do."""

from enum import Enum, auto

import grpc
import grpc.aio

# etcd's own words for what it cannot do just now, and the advice.
ADVICE = {
    "no leader": "its members have no leader: most of them must run and reach one another",
    "request timed out": "its members do not agree in time: look at their disks, and whether most of them run",
    "leader changed": "its members are choosing a leader",
    "too many requests": "it has more to do than it can: see its CPU and its disk",
    "database space exceeded": "its store is full: compact and defragment it, raise --quota-backend-bytes, then "
    "`etcdctl alarm disarm`",
}
# gRPC's words where TLS or what is spoken over it does not fit, and what that means with TLS and without; the first one
# that is found counts. It tells of them like of a connection that was refused.
_HANDSHAKES = (
    ("Stream removed", "", ""),  # it was spoken to before, and then ended
    ("Hostname Verification", "its certificate is for another name than this: have it made for it as well", ""),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is none of our authority's (directory.tls_ca), or has run out", ""),
    ("Failed to create security handshaker", "our files cannot be used: look at tls_ca, tls_certificate, tls_key", ""),
    ("Unwrap failed", "it does not take our certificate, or wants one: look at the authority that it trusts", ""),
    ("alert", "it does not take our certificate, or wants one: look at the authority that it trusts", ""),
    ("Handshake read failed", "it may want none, or has fallen silent", "it may want it"),
    ("Socket closed", "it may want none, or another certificate of ours", "it may want it"),
    ("parsing HTTP/2", "", "it may want it, or is no etcd at all"),
    ("andshake", "look at the authorities of its certificate and of ours", "it may want it"),
    ("SSL", "look at the authorities of its certificate and of ours", "it may want it"),
)


class Meaning(Enum):
    """What to do about an answer."""

    AWAY = auto()
    """Ask the next member; whether it was done is not known."""
    LOGIN = auto()
    """The token ended: log in again."""
    NOT_ALLOWED = auto()
    LEASE_GONE = auto()
    COMPACTED = auto()
    MISUSED = auto()


def meaning_of(error: grpc.aio.AioRpcError) -> Meaning:
    """What a failed call means."""
    code, text = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAUTHENTICATED or "revision of auth store is old" in text:
        return Meaning.LOGIN
    if code is grpc.StatusCode.PERMISSION_DENIED or "authentication" in text or "user name is empty" in text:
        return Meaning.NOT_ALLOWED
    if code is grpc.StatusCode.NOT_FOUND and "lease" in text:
        return Meaning.LEASE_GONE
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in text:
        return Meaning.COMPACTED
    if code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}:
        return Meaning.MISUSED
    return Meaning.AWAY


def is_full(error: grpc.aio.AioRpcError) -> bool:
    """Whether it takes no writes any more, this one as well, until somebody makes room."""
    return "database space exceeded" in (error.details() or "")


def refusal(text: str, user: str) -> str:
    """What to do about a call that is not allowed."""
    if "authentication is not enabled" in text:
        return f"authentication is off there: switch it on, or take user and password away ({text})"
    if "authentication failed" in text:
        return f"it does not take user {user!r} with this password: correct them ({text})"
    if "user name is empty" in text or not user:
        return f"it wants a user and a password: set both ({text})"
    return f"user {user!r} may not do that: give its role the rights to read and write under our prefix ({text})"


def absence(endpoint: str, error: grpc.aio.AioRpcError, *, tls: bool) -> str:
    """Why a member did not do what it was asked."""
    text = error.details() or error.code().name
    for sign, advice in ADVICE.items():
        if sign in text:
            return f"etcd at {endpoint} refuses: {advice}"
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"etcd at {endpoint} does not answer"
    doubt = next((with_tls if tls else without for sign, with_tls, without in _HANDSHAKES if sign in text), "")
    if doubt:
        return f"etcd at {endpoint} and we do not agree on TLS: {doubt} ({text})"
    return f"etcd at {endpoint} cannot be reached: {text}"
