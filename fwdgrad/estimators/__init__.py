"""Floor 4: estimators of the gradient, with the call of `jax.value_and_grad` plus a key."""
