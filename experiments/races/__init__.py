"""Accuracy of each family of estimators after equal time or equal operations."""
