"""Version 1 of the contract: messages in `*_pb2`, gRPC stubs in `*_pb2_grpc`."""
