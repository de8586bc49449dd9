"""What signs resume tokens where no secret is configured: kept beside the embedded log, as long as the sessions are.

With a directory it is the same on all nodes, and no secret: in development mode anybody may be any user anyhow.
"""

import contextlib
import os
import secrets
from pathlib import Path

from gateway.config import Config

_NAME = "development.key"


def development_key(config: Config) -> str:
    """The key of this node's development mode; empty: none is kept, and one of this start serves.

    It is made at the first call. A folder that cannot be written is the router's to complain of.
    """
    if config.development and config.clustered:
        return f"{config.directory.endpoints} {config.directory.prefix}"
    if not config.development or config.log.backend != "embedded" or not config.log.directory:
        return ""
    path = Path(config.log.directory) / _NAME
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
        return path.read_text("ascii").strip()
    return ""


def _make(path: Path) -> None:
    """Whole or not at all: two workers may start at once, and both have to read the same."""
    if path.exists():
        return
    draft = path.with_name(f"{_NAME}.{os.getpid()}.{secrets.token_hex(4)}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
