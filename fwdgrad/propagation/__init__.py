"""Floor 2: the structured JVP, a function pushed forward with its tangents in their form."""
