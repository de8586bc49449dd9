"""What can be known of a node's directory before it runs: whether it answers, and lets this node in."""

import asyncio

from gateway.cluster_config import directory_config
from gateway.config import Config


def directory_error(config: Config) -> str | None:
    """Why the directory cannot be read with the node's own settings, nothing if it can; None: there is none."""
    told = directory_config(config)
    if told is None:
        return None
    # Here: a node that is alone does without the library of etcd.
    from router.directory.opening import make_directory
    from router.directory.port import NODES, DirectoryError

    async def ask() -> str:
        directory = make_directory(told)
        try:
            await directory.page(NODES, "", 1)
        except DirectoryError as error:
            return str(error) or type(error).__name__
        finally:
            await directory.close()
        return ""

    return asyncio.run(ask())
