"""Floor 3, experiments: one module for each figure or table, named after what it shows.

Knows Hydra and the floors below. Each figure's module has `run(cfg, folder)`, which leaves a
tidy CSV file, and `draw(folder)`, which reads nothing else. `reproduce` runs them all.
"""
