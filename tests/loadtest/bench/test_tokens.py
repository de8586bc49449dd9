"""The storm's tokens: what Holdfast itself verifies."""

from pathlib import Path
from typing import Any

import jwt

from loadtest.bench.tokens import SECRET, token, token_file


def test_a_token_is_verified_by_a_jwt_library() -> None:
    options: Any = {"verify_exp": False}
    claims = jwt.decode(token("swarm-7", SECRET, now_s=1000.5), SECRET, algorithms=["HS256"], options=options)
    assert claims == {"sub": "swarm-7", "iat": 1000, "exp": 4600}


def test_a_file_has_a_token_a_user_and_goes_away() -> None:
    with token_file(3, SECRET) as name:
        lines = Path(name).read_text().splitlines()
    assert len(set(lines)) == 3
    assert not Path(name).exists()
