"""Resume tokens: what they carry comes back, and nothing that is malformed, old or another's resumes a session."""

import base64

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.codes import Code
from gateway.identity import AuthError, Identity
from gateway.mac import Mac
from gateway.resume_token import TOLD_EVERY_S, ResumeTokens
from gateway.rights import Rights
from tests.gateway.token_makers import NOW

SESSION = bytes(range(16))
LISTS = st.none() | st.lists(st.text()).map(tuple)
MAC = Mac(b"key")
TOKENS = ResumeTokens(MAC, 60, 600)


def refusal(session: object, token: object, now_s: float = NOW) -> int:
    with pytest.raises(AuthError) as refused:
        TOKENS.check(session, token, now_s)
    return refused.value.code


@given(
    st.binary(min_size=16, max_size=16),
    st.builds(
        Identity,
        st.text(min_size=1),
        st.text(),
        st.builds(Rights, LISTS, LISTS),
        st.none() | st.floats(NOW + 1, 1e15),
    ),
    st.floats(NOW, NOW + 0.9),
)
def test_what_goes_in_comes_out(session: bytes, identity: Identity, now_s: float) -> None:
    found = TOKENS.check(session.hex(), TOKENS.make(session, identity, now_s), now_s)
    assert (found.session, found.identity, found.issued_ms) == (session, identity, int(now_s * 1000))


def test_it_ends_with_its_time() -> None:
    given_token = TOKENS.make(SESSION, Identity("alice"), NOW)
    assert TOKENS.check(SESSION.hex(), given_token, NOW + 59).if_alive is False
    # From here on the session has to be there: its connection may have been open all the time.
    assert TOKENS.check(SESSION.hex(), given_token, NOW + 60).if_alive is True
    assert TOKENS.check(SESSION.hex(), given_token, NOW + 599).user == "alice"
    assert refusal(SESSION.hex(), given_token, NOW + 600) == Code.SESSION_EXPIRED


def test_another_sessions_is_refused() -> None:
    assert refusal(bytes(16).hex(), TOKENS.make(SESSION, Identity("alice"), NOW)) == Code.BAD_TOKEN


@pytest.mark.parametrize("token", [None, 5, "", "x", "é", "a" * 20, "a" * 63 + ".", "\ud800", b"bytes", ["a"]])
def test_what_is_no_resume_token_is_refused(token: object) -> None:
    assert refusal(SESSION.hex(), token) == Code.BAD_TOKEN
    assert refusal(token, TOKENS.make(SESSION, Identity("alice"), NOW)) == Code.BAD_TOKEN


def test_one_of_an_older_version_asks_for_a_fresh_session() -> None:
    body = msgpack.packb([SESSION, "alice", int(NOW) + 60])
    signed = base64.urlsafe_b64encode(Mac(MAC(b"holdfast resume token"))(body)[:16] + body).decode()
    assert refusal(SESSION.hex(), signed) == Code.SESSION_EXPIRED


def test_one_of_a_key_that_is_not_known_asks_for_a_fresh_session_and_is_told_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens = ResumeTokens(Mac(b"another key"), 60, 600)
    of_before = TOKENS.make(SESSION, Identity("alice"), NOW)
    for now_s in (NOW, NOW + 1, NOW + 2, NOW + TOLD_EVERY_S):
        with pytest.raises(AuthError) as refused:
            tokens.check(SESSION.hex(), of_before, now_s)
        assert refused.value.code == Code.SESSION_EXPIRED
    assert [record.getMessage().split()[0] for record in caplog.records] == ["1", "3"]
