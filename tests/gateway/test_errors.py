"""The tree is as its module shows it, and each leaf ends the program with the code that its reader expects."""

import pytest

from gateway import errors


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.ConfigError, 2),
        (errors.RunDirectoryError, 1),
        (errors.StartError, 1),
        (errors.PortTakenError, 78),
        (errors.LogTakenError, 70),
    ],
)
def test_exit_codes(error: type[errors.HoldfastError], exit_code: int) -> None:
    assert error.exit_code == exit_code


def test_the_modules_docstring_shows_all_of_them() -> None:
    defined = {name for name in vars(errors) if isinstance(getattr(errors, name), type)}
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in defined)


def test_a_refused_request_carries_its_answer() -> None:
    error = errors.RequestError(503, "unavailable", "not now", 1)
    assert (error.status, error.code, str(error), error.retry_after_s) == (503, "unavailable", "not now", 1)
