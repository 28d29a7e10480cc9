"""Floor 0: pytrees, arrays and JAX's internals; imports nothing of tangents."""
