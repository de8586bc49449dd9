"""What is said of messages whose namespace is not configured."""

import pytest

from router.log.unknown import NAMED_MAX, say_unknown


def test_it_names_them_and_says_what_becomes_of_them(caplog: pytest.LogCaptureFixture) -> None:
    say_unknown("the log in /log", [("old", None), ("deal", 100)], "until then")
    [record] = caplog.records
    said = record.getMessage()
    assert said.startswith(
        "the log in /log has messages of namespaces that are not configured: deal (100 messages), old."
    )
    assert "they stay until then" in said
    assert "as it was, and they are there again" in said
    assert "with history_messages = 0 they go for good" in said


def test_many_are_not_all_named(caplog: pytest.LogCaptureFixture) -> None:
    say_unknown("the log", [(f"n{number:03}", 1) for number in range(NAMED_MAX + 5)], "for a while")
    assert f"n{NAMED_MAX - 1:03} (1 messages) and 5 more. Nobody" in caplog.text
    assert f"n{NAMED_MAX:03}" not in caplog.text
