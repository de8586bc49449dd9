"""A server on picows and uvloop: `python -m loadtest.bench.peers.picows_server PORT`."""

import asyncio
import sys

import picows
import uvloop

from loadtest.bench.peers.hub import Hub

BACKLOG = 4096


class Listener(picows.WSListener):  # type: ignore[misc]  # picows is not in the environment in which types are checked
    """One connection."""

    def __init__(self, hub: Hub[picows.WSTransport]) -> None:
        self._hub = hub

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        """Act, answer, and send to each member, all within the read that brought the frame."""
        if frame.msg_type != picows.WSMsgType.BINARY:
            if frame.msg_type == picows.WSMsgType.CLOSE:
                transport.disconnect()
            return
        outcome = self._hub.act(transport, frame.get_payload_as_memoryview())
        if outcome.answer:
            transport.send(picows.WSMsgType.BINARY, outcome.answer)
        if outcome.members:
            message, binary = outcome.message, picows.WSMsgType.BINARY
            for member in outcome.members:
                member.send(binary, message)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self._hub.gone(transport)


async def serve(port: int) -> None:
    hub: Hub[picows.WSTransport] = Hub()
    server = await picows.ws_create_server(lambda _: Listener(hub), "127.0.0.1", port, backlog=BACKLOG)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(asyncio.wait_for(serve(int(sys.argv[1])), None))
