"""Calibrate and fit with one decoder block in memory at a time."""
