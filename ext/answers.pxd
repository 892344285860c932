"""A script's answers into protobuf messages; nothing of it is for cimport."""
