"""Floor 5: what an estimate makes of a loss, explained and checked before training."""
