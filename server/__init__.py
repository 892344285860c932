"""The gRPC service and the command line: translate a request, let the engine decide, translate its answer.

The only package, with loadtests, that may import grpc and the generated stubs (pickgate.v1). No rule lives here.
"""

import os

# gRPC reads this once, when it is loaded, so it stands here, before any module of ours can load it; server.tls says why it makes
# TLS 1.3 the only version, and looks at each start whether it did.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"
