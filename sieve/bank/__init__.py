"""Nested factors of every matrix, genomes over them, and the switch that puts them in a model."""
