"""An authorizer built on the published protobufs of Envoy's API (PyPI's xds-protos), by grpcio. Prints its port, serves until it is killed.

It goes by the header `x-ask`: `allow`, `deny` or `login`; anything else is an error of the call. What it was told it gives to the application in
`x-told`, as the published protobufs' own JSON."""

from concurrent import futures

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.type.v3 import http_status_pb2
from google.protobuf import json_format
from google.rpc import code_pb2, status_pb2


def header(key, value, action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD):
    return base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=key, value=value), append_action=action)


def allow(request):
    told = json_format.MessageToJson(request, indent=None, ensure_ascii=True)
    ok = external_auth_pb2.OkHttpResponse(
        headers=[
            header("x-told", told),
            header("x-absent", "set", base_pb2.HeaderValueOption.ADD_IF_ABSENT),
            header("x-present", "set", base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS),
        ],
        headers_to_remove=["authorization"],
        response_headers_to_add=[header("x-decided", "allow")],
        query_parameters_to_set=[base_pb2.QueryParameter(key="user", value="a b")],
        query_parameters_to_remove=["token"],
    )
    return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=code_pb2.OK), ok_response=ok)


def deny(status, headers):
    denied = external_auth_pb2.DeniedHttpResponse(
        status=http_status_pb2.HttpStatus(code=status), headers=headers, body="not you"
    )
    refused = status_pb2.Status(code=code_pb2.PERMISSION_DENIED, message="as x-ask says")
    return external_auth_pb2.CheckResponse(status=refused, denied_response=denied)


class Authorizer(external_auth_pb2_grpc.AuthorizationServicer):
    def Check(self, request, context):
        asked = request.attributes.request.http.headers.get("x-ask", "")
        if asked == "allow":
            return allow(request)
        if asked == "deny":
            return deny(403, [])
        if asked == "login":
            return deny(302, [header("location", "/login"), header("set-cookie", "a=1"), header("set-cookie", "b=2")])
        context.abort(grpc.StatusCode.INTERNAL, "nobody knows: ü")


def main():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(Authorizer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


main()
