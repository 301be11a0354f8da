"""A genetic algorithm as a Hydra sweeper: `hydra/sweeper=genetic`."""
