"""Forward and reverse mode: derivatives in three ways, Jacobians, a walk through a network."""
