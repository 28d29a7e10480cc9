"""Experiments: a folder for each kind, a module for each figure or table.

Each figure's module has `run(cfg, folder)`, which leaves a tidy CSV file, and `draw(folder)`, which
reads nothing else. `reproduce` runs them all; `train` makes one run.
"""
