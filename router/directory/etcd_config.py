"""Where etcd is, who we are there, and how long it may take: one frozen value."""

from dataclasses import dataclass
from pathlib import Path

from router.config import DirectoryConfig
from router.directory.port import Misused

CLIENT_PORT = 2379
PORT_MAX = 65_535
ENDPOINTS_MAX = 16
# Of the time for a call, what one member gets before the next one is asked.
ATTEMPTS_A_CALL = 3


@dataclass(frozen=True, kw_only=True)
class EtcdConfig:
    """Settings of a directory in etcd; those that cannot be are refused when it is made."""

    endpoints: tuple[str, ...]
    """Members of the cluster, `host:port`; all of them, so that any may be away."""
    prefix: str = "holdfast/"
    """Before each key. Several clusters of ours may share one etcd under different prefixes."""
    user: str = ""
    password: str = ""
    tls: bool = False
    ca_file: str = ""
    """PEM of the authority that signed the members' certificates; empty: those that the system trusts."""
    cert_file: str = ""
    """PEM of our own certificate, where etcd asks for one (`--client-cert-auth`)."""
    key_file: str = ""
    deadline_s: float = 5.0
    """For whatever is asked, all members and attempts together."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.endpoints) <= ENDPOINTS_MAX:
            raise Misused(f"etcd needs 1 to {ENDPOINTS_MAX} endpoints, such as etcd-0:{CLIENT_PORT}")
        for endpoint in self.endpoints:
            _check_endpoint(endpoint)
        if not self.prefix.endswith("/") or "\0" in self.prefix:
            raise Misused(f"the prefix {self.prefix!r} must end with `/`, so that it is nobody else's beginning")
        if bool(self.user) != bool(self.password):
            raise Misused("etcd's user and password go together: name both, or none")
        if bool(self.cert_file) != bool(self.key_file):
            raise Misused("a client certificate for etcd needs its key, and the key its certificate")
        if not self.tls and (self.ca_file or self.cert_file):
            raise Misused("certificates for etcd are of no use without tls = true")
        if not 0.1 <= self.deadline_s <= 60:
            raise Misused(f"a deadline of {self.deadline_s} s for etcd: 0.1 to 60 s")

    @classmethod
    def of(cls, config: DirectoryConfig) -> "EtcdConfig":
        """The settings that a process is told.

        Raises:
            Misused: they do not fit each other.
        """
        return cls(
            endpoints=config.endpoints,
            prefix=config.prefix,
            user=config.user,
            password=config.password,
            tls=config.tls,
            ca_file=config.tls_ca,
            cert_file=config.tls_certificate,
            key_file=config.tls_key,
        )

    @property
    def attempt_s(self) -> float:
        """How long one member gets to answer."""
        return self.deadline_s / ATTEMPTS_A_CALL

    def __repr__(self) -> str:
        """Without the password: this is for logs."""
        return f"etcd at {','.join(self.endpoints)} under {self.prefix}{' with TLS' if self.tls else ''}"


def pem(path: str, what: str) -> bytes | None:
    """What is in a file of certificates or of a key; None for no file.

    Raises:
        Misused: it cannot be read.
    """
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Misused(f"{what} for etcd cannot be read: {path}: {error.strerror}") from error


def _check_endpoint(endpoint: str) -> None:
    if "://" in endpoint:
        raise Misused(f"{endpoint!r}: an endpoint of etcd is host:port; TLS is a setting of its own")
    host, colon, port = endpoint.rpartition(":")
    if not host or not colon or not port.isdecimal() or not 0 < int(port) <= PORT_MAX:
        raise Misused(f"{endpoint!r} is no endpoint of etcd: host:port, such as etcd-0:{CLIENT_PORT}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise Misused(f"{endpoint!r} is no endpoint of etcd: an IPv6 address stands in brackets, [::1]:{CLIENT_PORT}")
