"""Layers and models that travel with exports; they need only torch and transformers."""
