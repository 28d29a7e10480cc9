"""Bias, variance and cost of gradient estimates, and the divergence that variance causes."""
