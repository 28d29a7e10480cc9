"""Floor 1: the forms of tangents, and the distributions that sample them."""
