"""A gRPC server in all four kinds, with bytes for messages. Prints its port, serves until it is killed. Arguments, if any: the maximum
age of a connection and the grace after it, in milliseconds."""

import sys
import time
from concurrent import futures

import grpc


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    if request == b"fail":
        context.set_trailing_metadata((("x-why", "as asked"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "asked to fail: ü")
    if request == b"wait":
        while context.is_active():
            time.sleep(0.01)
        return b"nobody hears this"
    context.send_initial_metadata((("x-initial", metadata.get("x-asked", "")),))
    context.set_trailing_metadata((("x-trailing", "yes"), ("x-data-bin", bytes(range(256)))))
    return b"echo " + request


def server_stream(request, context):
    for n in range(int(request)):
        yield b"%d" % n


def ticks(request, context):
    """A message every 50 ms."""
    for n in range(int(request)):
        yield b"%d" % n
        time.sleep(0.05)


def client_stream(requests, context):
    count, size = 0, 0
    for request in requests:
        count += 1
        size += len(request)
    return b"%d messages, %d bytes" % (count, size)


def both(requests, context):
    for request in requests:
        yield request.upper()


def handlers():
    return grpc.method_handlers_generic_handler(
        "tulle.test.Echo",
        {
            "Unary": grpc.unary_unary_rpc_method_handler(unary),
            "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
            "Ticks": grpc.unary_stream_rpc_method_handler(ticks),
            "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
            "Both": grpc.stream_stream_rpc_method_handler(both),
        },
    )


def main():
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    if len(sys.argv) > 1:
        options += [("grpc.max_connection_age_ms", int(sys.argv[1])), ("grpc.max_connection_age_grace_ms", int(sys.argv[2]))]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), options=options)
    server.add_generic_rpc_handlers((handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


main()
