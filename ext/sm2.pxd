"""Nothing for other kernels."""
