"""Texts and numbers into rows of bytes; nothing of it is for cimport."""
