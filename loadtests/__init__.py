"""Load generators and a comparison stack; they reach a running server through its gRPC contract only.

Two modules look behind it, for the books of a run: `books` reads our store with the engine's layouts, `comparison.books` that of the
comparison. `python -m loadtests` runs everything.
"""
