"""Layers and models that travel with exports; they need torch and transformers alone."""
