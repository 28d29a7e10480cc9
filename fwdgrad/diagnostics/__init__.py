"""Floor 5: `explain` and checks of a loss before training."""
