"""Calls grpc_server.py in all four kinds. Arguments: the address, how often, and the size of the large message. Prints what passed."""

import queue
import sys

import grpc


def check(holds, what):
    if not holds:
        raise AssertionError(what)


def unary(stub, size):
    response, call = stub["Unary"].with_call(b"hello", metadata=(("x-asked", "this"),), timeout=30)
    check(response == b"echo hello", response)
    check(("x-initial", "this") in call.initial_metadata(), call.initial_metadata())
    trailing = dict(call.trailing_metadata())
    check(trailing.get("x-trailing") == "yes", trailing)
    check(trailing.get("x-data-bin") == bytes(range(256)), trailing)
    large = b"x" * size
    check(stub["Unary"](large, timeout=60) == b"echo " + large, "a large message")


def error(stub):
    try:
        stub["Unary"](b"fail", timeout=30)
    except grpc.RpcError as failed:
        check(failed.code() == grpc.StatusCode.FAILED_PRECONDITION, failed.code())
        check(failed.details() == "asked to fail: ü", failed.details())
        check(("x-why", "as asked") in failed.trailing_metadata(), failed.trailing_metadata())
    else:
        raise AssertionError("it should have failed")


def deadline(stub):
    try:
        stub["Unary"](b"wait", timeout=0.3)
    except grpc.RpcError as failed:
        check(failed.code() == grpc.StatusCode.DEADLINE_EXCEEDED, failed.code())
    else:
        raise AssertionError("the deadline should have passed")


def server_stream(stub):
    check(list(stub["ServerStream"](b"200", timeout=30)) == [b"%d" % n for n in range(200)], "a server's stream")


def client_stream(stub):
    messages = [b"y" * n for n in range(100)]
    answer = stub["ClientStream"](iter(messages), timeout=30)
    check(answer == b"100 messages, 4950 bytes", answer)


def both(stub):
    """Each message is sent only when the answer to the one before has come."""
    words = queue.Queue()
    answers = stub["Both"](iter(words.get, None), timeout=30)
    for n in range(50):
        words.put(b"word %d" % n)
        check(next(answers) == b"WORD %d" % n, n)
    words.put(None)
    check(list(answers) == [], "the end")


def cancelled(stub):
    words = queue.Queue()
    answers = stub["Both"](iter(words.get, None))
    words.put(b"one")
    check(next(answers) == b"ONE", "before the cancellation")
    answers.cancel()
    words.put(None)
    check(answers.code() == grpc.StatusCode.CANCELLED, answers.code())


def main():
    address, rounds, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        path = "/tulle.test.Echo/"
        stub = {
            "Unary": channel.unary_unary(path + "Unary"),
            "ServerStream": channel.unary_stream(path + "ServerStream"),
            "ClientStream": channel.stream_unary(path + "ClientStream"),
            "Both": channel.stream_stream(path + "Both"),
        }
        for _ in range(rounds):
            unary(stub, size)
            error(stub)
            server_stream(stub)
            client_stream(stub)
            both(stub)
            cancelled(stub)
        deadline(stub)
    print("all four kinds")


main()
