"""Every exception that the gateway's own Python raises, whole:

HoldfastError
├── ConfigError          the configuration cannot be used; the message says what to change
├── RunDirectoryError    the run directory belongs to another program or cannot be used
├── StartError           a part of the node could not be started
│   └── PortTakenError   … because another program listens there
├── LogTakenError        another node has the log now: this one has ended
├── ReloadError          a rolling restart was called off; what runs, runs on
└── RequestError         an admin request that cannot be answered as asked; carries the HTTP status
"""


class HoldfastError(Exception):
    """Something that the operator can act upon; its text is written for them. `exit_code` is the program's."""

    exit_code = 1


class ConfigError(HoldfastError):
    """The configuration cannot be used."""

    exit_code = 2


class RunDirectoryError(HoldfastError):
    """The run directory belongs to another program or cannot be used."""


class StartError(HoldfastError):
    """A part of the node could not be started."""


class PortTakenError(StartError):
    """Another program listens on a port that the node needs."""

    exit_code = 78  # EX_CONFIG, also what a worker exits with when its port is taken


class LogTakenError(HoldfastError):
    """Another node has the log now; this one has ended. To start it again would depose the other."""

    exit_code = 70  # also what a router exits with that was deposed


class ReloadError(HoldfastError):
    """A rolling restart was called off; what was running stays."""


class RequestError(HoldfastError):
    """An admin request that cannot be answered as asked: `status` of HTTP, `code` from the protocol's table of codes
    where one fits (else a word of the same style), `message` for people, and `retry_after_s`, the whole seconds after
    which the same request may work, or None when it will not.
    """

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
