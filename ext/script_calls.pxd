"""Rows of bytes into script calls; nothing of it is for cimport."""
