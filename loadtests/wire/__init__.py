"""A very light client of unary gRPC calls, for load: raw HTTP/2 over non-blocking sockets, frames made ahead of time.

It shares two cores with the server and the store that it measures, so a call may cost it some ten microseconds, which no
client on a full gRPC stack reaches in Python. `frames` and `headers` know bytes, `connection` the protocol (no I/O), `pool` the
sockets. What it leaves out: streams of messages, compression, TLS, pushes and priorities.

Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK), https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""
