"""Load generators and comparison stacks; they reach a running server through its gRPC contract only."""
