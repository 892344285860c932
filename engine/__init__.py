"""The domain of pickup codes: it knows no gRPC and no protobuf.

The layering law, enforced by tests/test_import_law.py: server imports engine, engine imports ext, never the other way.
Inside, only engine.state talks to Redis or Valkey and only engine.ledger talks SQL.
"""
