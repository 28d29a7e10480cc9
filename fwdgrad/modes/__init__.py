"""Beside the floors: forward and reverse mode through a chain of layers, and Jacobians."""
