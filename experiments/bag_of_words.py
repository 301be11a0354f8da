"""The accuracy of word counts with logistic regression on the reviews of Almanac.

python -m experiments.bag_of_words
"""

import json
import sys

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sieve.tasks.almanac import DATASETS, almanac_rows


def bag_of_words_accuracy(dataset: str, n_train: int = 3000, n_test: int = 1500) -> float:
    """Test accuracy of logistic regression on the word counts of calibration rows."""
    train = almanac_rows("reviews", dataset, "calibration", n_rows=n_train)
    test = almanac_rows("reviews", dataset, "test", n_rows=n_test)
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    model.fit([str(row["text"]) for row in train], [row["label"] for row in train])
    guesses = model.predict([str(row["text"]) for row in test])
    return sum(g == row["label"] for g, row in zip(guesses, test, strict=True)) / n_test


if __name__ == "__main__":
    figures = {dataset: round(bag_of_words_accuracy(dataset), 4) for dataset in DATASETS}
    sys.stdout.write(json.dumps(figures) + "\n")
