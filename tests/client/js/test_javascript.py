"""Runs the JavaScript client's tests by Node's own test runner, with a gateway for those that want a socket."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from tests.client.scripted_gateway import ScriptedGateway

HERE = Path(__file__).parent
NODE = shutil.which("node")
DEADLINE_S = 60


@pytest.mark.slow
@pytest.mark.skipif(NODE is None, reason="needs Node 18 or later")
@pytest.mark.parametrize("file", sorted(HERE.glob("*.test.mjs")), ids=lambda file: file.name)
def test_javascript(file: Path) -> None:
    async def main() -> None:
        assert NODE is not None
        async with ScriptedGateway() as gateway:
            node = await asyncio.create_subprocess_exec(
                NODE,
                "--test",
                "--test-reporter=tap",
                str(file),
                env={**os.environ, "HOLDFAST_TEST_TCP": gateway.url("tcp")},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            try:
                async with asyncio.timeout(DEADLINE_S):
                    output, _ = await node.communicate()
            finally:
                if node.returncode is None:
                    node.kill()
                    await node.wait()
            assert node.returncode == 0, output.decode()

    asyncio.run(main())
