"""Each status that etcd answers with has one meaning, and a sentence for whoever runs it.

The texts are etcd's own, as 3.4 to 3.7 send them; what a real server sends is in test_etcd_client.py.
"""

import grpc
import pytest
from grpc import StatusCode

from router.directory.etcd_client import ended
from router.directory.etcd_errors import Meaning, absence, meaning_of, refusal


@pytest.mark.parametrize(
    ("code", "text", "meaning"),
    [
        (StatusCode.UNAVAILABLE, "etcdserver: no leader", Meaning.AWAY),
        (StatusCode.UNAVAILABLE, "failed to connect to all addresses", Meaning.AWAY),
        (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", Meaning.AWAY),
        (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Meaning.AWAY),
        (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Meaning.AWAY),
        (StatusCode.UNKNOWN, "whatever", Meaning.AWAY),
        (StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token", Meaning.LOGIN),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Meaning.LOGIN),
        (StatusCode.PERMISSION_DENIED, "etcdserver: permission denied", Meaning.NOT_ALLOWED),
        (
            StatusCode.INVALID_ARGUMENT,
            "etcdserver: authentication failed, invalid user ID or password",
            Meaning.NOT_ALLOWED,
        ),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty", Meaning.NOT_ALLOWED),
        (StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled", Meaning.NOT_ALLOWED),
        (StatusCode.NOT_FOUND, "etcdserver: requested lease not found", Meaning.LEASE_GONE),
        (
            StatusCode.OUT_OF_RANGE,
            "etcdserver: mvcc: required revision has been compacted",
            Meaning.COMPACTED,
        ),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", Meaning.MISUSED),
        (StatusCode.UNIMPLEMENTED, "unknown service", Meaning.MISUSED),
    ],
)
def test_a_status_has_a_meaning(code: grpc.StatusCode, text: str, meaning: Meaning) -> None:
    assert meaning_of(ended(code, text)) is meaning


@pytest.mark.parametrize(
    ("text", "user", "said"),
    [
        ("etcdserver: authentication is not enabled", "hold", "take user and password away"),
        ("etcdserver: authentication failed, invalid user ID or password", "hold", "'hold'"),
        ("etcdserver: user name is empty", "", "set both"),
        ("etcdserver: permission denied", "hold", "under our prefix"),
    ],
)
def test_a_refusal_says_what_to_do(text: str, user: str, said: str) -> None:
    assert said in refusal(text, user)


@pytest.mark.parametrize(
    ("code", "text", "tls", "said"),
    [
        (StatusCode.UNAVAILABLE, "etcdserver: no leader", False, "most of them must run"),
        (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", False, "alarm disarm"),
        (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", False, "does not answer"),
        (StatusCode.UNAVAILABLE, "last error: Socket closed", False, "do not agree on TLS: it may want it"),
        (StatusCode.UNAVAILABLE, "Stream removed (Socket closed)", False, "cannot be reached: Stream removed"),
        (StatusCode.UNAVAILABLE, "Stream removed (Socket closed)", True, "cannot be reached: Stream removed"),
        (StatusCode.UNAVAILABLE, "Handshake read failed (Socket closed)", True, "it may want none"),
        (StatusCode.UNAVAILABLE, "SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED", True, "none of our authority's"),
        (StatusCode.UNAVAILABLE, "Hostname Verification Check failed.", True, "for another name than this"),
        (StatusCode.UNAVAILABLE, "Unwrap failed (TSI_DATA_CORRUPTED)", True, "it does not take our certificate"),
        (StatusCode.UNAVAILABLE, "Failed to create security handshaker.", True, "our files cannot be used"),
        (StatusCode.UNAVAILABLE, "Failed parsing HTTP/2 (Expected SETTINGS)", False, "or is no etcd at all"),
        (StatusCode.UNAVAILABLE, "connection refused", False, "cannot be reached: connection refused"),
        (StatusCode.UNKNOWN, "", False, "UNKNOWN"),
    ],
)
def test_an_absence_names_the_member_and_what_to_look_at(
    code: grpc.StatusCode, text: str, tls: bool, said: str
) -> None:
    found = absence("etcd-1:2379", ended(code, text), tls=tls)
    assert found.startswith("etcd at etcd-1:2379")
    assert said in found
