"""Floor 1: forms of tangents (dense, low rank, block-sparse) and distributions of tangents."""
