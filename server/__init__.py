"""The gRPC service and the command line: translate a request, let the engine decide, translate its answer.

The only package, with loadtests, that may import grpc and the generated stubs (pickgate.v1). No rule lives here.
"""
