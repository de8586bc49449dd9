"""Certificates that servers of tests show, by openssl."""

import subprocess
from pathlib import Path

DEADLINE_S = 30


def self_signed(folder: Path, chain: str = "cert.pem", key: str = "key.pem") -> tuple[Path, Path]:
    """A new self-signed P-256 certificate for localhost and 127.0.0.1, and its key (PEM, not encrypted): two files in
    a folder, in place of those that may be there.
    """
    made = folder / chain, folder / key
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    said = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(made[1]), "-out", str(made[0])]
    subprocess.run([*make, *said, *files], check=True, capture_output=True, timeout=DEADLINE_S)
    return made
