"""A WebSocket server that echoes, upper-casing text. Prints its port, serves until it is killed."""

import asyncio

from websockets.asyncio.server import serve


async def echo(connection):
    async for message in connection:
        await connection.send(message.upper() if isinstance(message, str) else message)


async def main():
    async with serve(echo, "127.0.0.1", 0, max_size=None, subprotocols=["tulle.test"]) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
