"""An application of a few lines, searched with a genetic algorithm.

    python example/bowl.py -m
    python example/bowl.py -m hydra.sweeper.generations=10 hydra/launcher=joblib

It finds the lowest point of two bowls that lies outside a circle around the bottom.
"""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path=".", config_name="bowl")
def main(config: DictConfig) -> dict[str, float]:
    """Evaluate one point: its height, and how far it lies outside the circle."""
    squares = config.x**2 + config.y**2
    height = squares if config.shape == "round" else abs(config.x) + abs(config.y)
    return {"height": float(height), "outside": squares - 1}


if __name__ == "__main__":
    main()
