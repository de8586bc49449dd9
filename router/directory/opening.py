"""Makes the directory that a configuration names."""

import functools

from core.descriptors import is_bus
from core.owned import ACCOUNT
from router.config import DirectoryConfig
from router.directory.etcd import EtcdDirectory
from router.directory.etcd_config import EtcdConfig


def make_directory(config: DirectoryConfig) -> EtcdDirectory:
    """The directory, of which nothing was asked yet; the audit knows its sockets, which come and go by themselves.

    Raises:
        Misused: a file of the settings cannot be read, or settings do not fit each other.
    """
    for endpoint in config.endpoints:
        ACCOUNT.explain(functools.partial(is_bus, endpoint=f"tcp://{endpoint}"))
    return EtcdDirectory(EtcdConfig.of(config))
