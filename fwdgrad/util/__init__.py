"""Floor 0: what knows JAX and pytrees, and nothing of tangents."""
