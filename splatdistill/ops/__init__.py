"""Fused operations: native kernels where they were built, the pure-torch reference elsewhere."""
