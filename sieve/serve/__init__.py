"""An exported model that answers its task over HTTP: `python -m sieve.serve runs/.../export`."""
