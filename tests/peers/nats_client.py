"""A NATS client: what it publishes comes back, requests are answered, and a large message stays whole.

nats_client.py URL SIZE
"""

import asyncio
import os
import sys

import nats


async def main(url: str, size: int) -> None:
    client = await nats.connect(url, connect_timeout=20, allow_reconnect=False)
    assert size <= client.max_payload, client.max_payload
    subscription = await client.subscribe("numbers")

    async def answer(message):
        await message.respond(message.data[::-1])

    await client.subscribe("reversed", cb=answer)
    for number in range(1000):
        await client.publish("numbers", str(number).encode())
    for number in range(1000):
        message = await subscription.next_msg(timeout=20)
        assert message.data == str(number).encode(), message.data
    large = os.urandom(size)
    reply = await client.request("reversed", large, timeout=20)
    assert reply.data == large[::-1]
    await client.drain()
    print("all came back")


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
