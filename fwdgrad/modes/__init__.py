"""Forward and reverse mode through a chain of layers, Jacobians, and numerical differentiation."""
