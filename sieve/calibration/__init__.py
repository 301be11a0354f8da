"""Streaming second moments of activations and gradients."""
