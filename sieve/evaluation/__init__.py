"""Scores per example, divergence from the dense model, and speed."""
