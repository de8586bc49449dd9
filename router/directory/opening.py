"""Makes the directory that a configuration names."""

from router.config import DirectoryConfig
from router.directory.etcd import EtcdDirectory
from router.directory.etcd_config import EtcdConfig


def make_directory(config: DirectoryConfig) -> EtcdDirectory:
    """The directory, of which nothing was asked yet.

    Raises:
        Misused: a file of the settings cannot be read, or settings do not fit each other.
    """
    return EtcdDirectory(
        EtcdConfig(
            endpoints=config.endpoints,
            prefix=config.prefix,
            user=config.user,
            password=config.password,
            tls=config.tls,
            ca_file=config.tls_ca,
            cert_file=config.tls_certificate,
            key_file=config.tls_key,
        )
    )
