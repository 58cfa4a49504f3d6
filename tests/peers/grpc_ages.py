"""Calls a grpc_server.py whose connections end by age. Arguments: the address, and how often each of four streams is to be cut. All the
while others make unary calls, and streams that are shorter than the grace; none of these may fail. Prints what passed."""

import sys
import threading
import time

import grpc

PATH = "/tulle.test.Echo/"


class Counts:
    """How often each thing was seen, and what should not have been."""

    def __init__(self):
        self.lock = threading.Lock()
        self.seen = {}
        self.wrong = []
        self.over = threading.Event()

    def saw(self, what):
        with self.lock:
            self.seen[what] = self.seen.get(what, 0) + 1

    def failed(self, what):
        with self.lock:
            self.wrong.append(what)


def until_over(counts, what, ask):
    while not counts.over.is_set():
        try:
            ask()
            counts.saw(what)
        except (grpc.RpcError, AssertionError) as error:
            counts.failed(f"{what}: {error!r}")
        time.sleep(0.02)


def unary(stub):
    answer = stub["Unary"](b"hello", timeout=60)
    assert answer == b"echo hello", answer


def short(stub):
    """Much shorter than the grace."""
    answers = list(stub["Ticks"](b"3", timeout=60))
    assert answers == [b"%d" % n for n in range(3)], answers


def cut(stub, counts, times):
    for _ in range(times):
        heard = 0
        try:
            for message in stub["Ticks"](b"100000", timeout=60):
                assert message == b"%d" % heard, message
                heard += 1
            counts.failed("a stream without an end ended")
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE and heard > 0:
                counts.saw("cut")
            else:
                counts.failed(f"a stream was cut after {heard} messages: {error!r}")


def main():
    address, times = sys.argv[1], int(sys.argv[2])
    counts = Counts()
    with grpc.insecure_channel(address) as channel:
        stub = {
            "Unary": channel.unary_unary(PATH + "Unary"),
            "Ticks": channel.unary_stream(PATH + "Ticks"),
        }
        run = lambda target, *arguments: threading.Thread(target=target, args=arguments)
        steady = [run(until_over, counts, "unary", lambda: unary(stub)) for _ in range(6)]
        steady += [run(until_over, counts, "short", lambda: short(stub)) for _ in range(3)]
        cuts = [run(cut, stub, counts, times) for _ in range(4)]
        for thread in steady + cuts:
            thread.start()
        for thread in cuts:
            thread.join()
        counts.over.set()
        for thread in steady:
            thread.join()
    if counts.wrong:
        raise AssertionError(f"{len(counts.wrong)} of {counts.seen}: {counts.wrong[:10]}")
    if counts.seen["cut"] != 4 * times or counts.seen["unary"] < 20 or counts.seen["short"] < 4:
        raise AssertionError(counts.seen)
    print("no call failed")


main()
