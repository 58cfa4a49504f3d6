"""Speaks with websocket_server.py. Arguments: the address, how many messages, and the size of the large one. Prints what passed."""

import asyncio
import os
import sys

from websockets.asyncio.client import connect


async def main():
    address, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    async with connect(f"ws://{address}/chat", max_size=None, subprotocols=["tulle.test"]) as connection:
        assert connection.subprotocol == "tulle.test", connection.subprotocol
        for n in range(count):
            await connection.send(f"message {n}")
            answer = await connection.recv()
            assert answer == f"MESSAGE {n}", answer
        large = os.urandom(size)
        await connection.send(large)
        assert await connection.recv() == large, "a large message"
        waiter = await connection.ping()
        await waiter
        await connection.close(4000, "done")
    assert connection.close_code == 4000, connection.close_code
    print("closed in order")


asyncio.run(main())
