"""Scanning of protobuf messages into columns; nothing of it is for cimport."""
