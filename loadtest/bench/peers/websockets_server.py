"""A server on websockets and uvloop: `python -m loadtest.bench.peers.websockets_server PORT`."""

import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

from loadtest.bench.peers.hub import Hub

BACKLOG = 4096
HEARTBEAT_S = 30


async def main(port: int) -> None:
    hub: Hub[ServerConnection] = Hub()

    async def converse(connection: ServerConnection) -> None:
        try:
            async for body in connection:
                if isinstance(body, bytes):
                    outcome = hub.act(connection, body)
                    if outcome.answer:
                        await connection.send(outcome.answer)
                    if outcome.members:
                        broadcast(outcome.members, outcome.message)
        except ConnectionClosed:
            pass  # gone without a close frame
        finally:
            hub.gone(connection)

    settings = {"compression": None, "ping_interval": HEARTBEAT_S, "backlog": BACKLOG}
    async with serve(converse, "127.0.0.1", port, **settings) as server:  # type: ignore[arg-type]
        print("ready", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
