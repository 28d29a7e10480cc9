"""Floor 3: where tangents enter a loss, at the weights or at the activities."""
