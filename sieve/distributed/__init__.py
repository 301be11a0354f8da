"""Lightning trainers, sharded models, and what happens when a rank dies."""
