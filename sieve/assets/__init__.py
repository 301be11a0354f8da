"""The embedded model, and how it is trained."""
