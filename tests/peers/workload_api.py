"""A SPIFFE Workload API, written from the standard: grpcio, and protobufs by hand. Arguments: a file of JSON, then `name=path` for each socket.

The file says for each name what its socket tells: a list of identities (`spiffe_id`, `hint`, and base64 of `x509_svid`, `x509_svid_key`, `bundle`), or
a message with which everybody is refused. Whoever is connected is told as soon as that changes. Prints 1 once it serves."""

import base64
import json
import sys
import time
from concurrent import futures

import grpc


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, data):
    """A field of length-delimited bytes."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def response(identities):
    out = b""
    for identity in identities:
        svid = field(1, identity["spiffe_id"].encode())
        for number, name in ((2, "x509_svid"), (3, "x509_svid_key"), (4, "bundle")):
            svid += field(number, base64.b64decode(identity[name]))
        if identity.get("hint"):
            svid += field(5, identity["hint"].encode())
        out += field(1, svid)
    # What nobody knows yet must not matter, and nor must bundles of others.
    return out + field(3, field(1, b"spiffe://elsewhere.example") + field(2, b"")) + field(2047, b"new")


def told(path, name):
    with open(path, encoding="utf-8") as file:
        return json.load(file)[name]


def serve(path, name, socket):
    def fetch(_, context):
        if dict(context.invocation_metadata()).get("workload.spiffe.io") != "true":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing")
        last = None
        while context.is_active():
            now = told(path, name)
            if isinstance(now, str):
                context.abort(grpc.StatusCode.PERMISSION_DENIED, now)
            if now != last:
                last = now
                yield response(now)
            time.sleep(0.05)

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    handler = grpc.unary_stream_rpc_method_handler(fetch)
    handlers = grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", {"FetchX509SVID": handler})
    server.add_generic_rpc_handlers((handlers,))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    return server


def main():
    path = sys.argv[1]
    servers = [serve(path, *argument.split("=", 1)) for argument in sys.argv[2:]]
    print(1, flush=True)
    for server in servers:
        server.wait_for_termination()


main()
