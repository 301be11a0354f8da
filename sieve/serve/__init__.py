"""Answer the task of an exported model over HTTP: `python -m sieve.serve runs/.../export`."""
