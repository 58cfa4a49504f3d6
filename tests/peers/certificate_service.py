"""A server of istio.v1.auth.IstioCertificateService that is as strict as cert-manager's istio-csr: grpcio, protobufs by hand, and openssl as its authority.
Argument: a folder with `ca.pem` and `ca-key.pem` (the authority), `server.pem` and `server-key.pem` (its own certificate), and `tokens.json` (who the bearer of a
token is). What is asked, and what becomes of it, is appended to `asked.log` there, a line each. Prints its port."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent import futures

import grpc

FOLDER = sys.argv[1]
LOG = threading.Lock()


def at(name):
    return os.path.join(FOLDER, name)


def read(name):
    with open(at(name), "rb") as file:
        return file.read()


def varint(data, place):
    number, shift = 0, 0
    while True:
        byte = data[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place


def fields(data):
    """Of a message: bytes and numbers by field."""
    found, place = {}, 0
    while place < len(data):
        key, place = varint(data, place)
        if key & 7 == 0:
            found[key >> 3], place = varint(data, place)
        else:
            length, place = varint(data, place)
            found[key >> 3], place = data[place : place + length], place + length
    return found


def delimited(number, data):
    out, length = bytearray([number << 3 | 2]), len(data)
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    out.append(length)
    return bytes(out) + data


def openssl(*arguments, given=None):
    run = subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=False)
    if run.returncode != 0:
        raise ValueError(run.stderr.decode())
    return run.stdout.decode()


def names(csr):
    """What a request asks to be called; it must be signed by its own key."""
    text = openssl("req", "-verify", "-noout", "-text", "-nameopt", "multiline", given=csr)
    lines = [line.strip() for line in text.splitlines()]
    found = [part.strip() for line in lines if ":" in line for part in line.split(",")]
    wanted = [part for part in found if part.split(":")[0] in ("URI", "DNS", "IP Address", "email")]
    return wanted + [line for line in lines if line.startswith("commonName")]


def sign(csr, identity, seconds):
    with tempfile.TemporaryDirectory() as folder:
        extensions = os.path.join(folder, "extensions")
        with open(extensions, "w", encoding="utf-8") as file:
            file.write(
                f"subjectAltName=critical,URI:{identity}\nbasicConstraints=critical,CA:FALSE\n"
                "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
            )
        request = os.path.join(folder, "request")
        with open(request, "wb") as file:
            file.write(csr)
        days = str(max(1, seconds // 86400))
        authority = ("-CA", at("ca.pem"), "-CAkey", at("ca-key.pem"), "-set_serial", str(int.from_bytes(os.urandom(8), "big")))
        return openssl("x509", "-req", "-in", request, *authority, "-days", days, "-extfile", extensions)


def decide(request, context):
    message = fields(request)
    csr, seconds = message.get(1, b""), message.get(3, 0)
    bearer = dict(context.invocation_metadata()).get("authorization", "")
    identity = json.loads(read("tokens.json")).get(bearer.removeprefix("Bearer "))
    if identity is None:
        return None, "no such token"
    if names(csr) != [f"URI:{identity}"]:
        return None, f"{names(csr)} is not the identity {identity}"
    if seconds <= 0:
        return None, "no lifetime"
    chain = [sign(csr, identity, seconds), read("ca.pem").decode()]
    return b"".join(delimited(1, one.encode()) for one in chain), f"issued for {identity}"


def create(request, context):
    try:
        answer, outcome = decide(request, context)
    except ValueError as error:
        answer, outcome = None, str(error)
    with LOG, open(at("asked.log"), "a", encoding="utf-8") as log:
        log.write(outcome.replace("\n", " ") + "\n")
    if answer is None:
        # It says no more than that, whatever the reason.
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure")
    return answer


def main():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    handler = grpc.unary_unary_rpc_method_handler(create)
    handlers = grpc.method_handlers_generic_handler("istio.v1.auth.IstioCertificateService", {"CreateCertificate": handler})
    server.add_generic_rpc_handlers((handlers,))
    credentials = grpc.ssl_server_credentials([(read("server-key.pem"), read("server.pem"))])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


main()
