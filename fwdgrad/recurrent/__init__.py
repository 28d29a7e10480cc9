"""Online gradients of programs that carry a state from step to step."""
