"""Shared by all experiments: configs, runs, tables, curves, the paper's facts, the report."""
