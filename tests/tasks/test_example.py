"""An example is checked where it is made."""

from typing import Any

import numpy as np
import pytest

from sieve.tasks import Example


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        ((" no", " yes"), "yes", "'yes', expected the index of the right choice, 0 to 1; for a wo"),
        ((" no", " yes"), 2, "answer of an Example is 2, expected the index"),
        ((" no", " yes"), -1, "answer of an Example is -1, expected the index"),
        ((" no", " yes"), None, "answer of an Example is None, expected the index"),
        (" no", 0, "choices of an Example are ' no', expected a tuple of texts"),
    ],
)
def test_a_wrong_answer_or_choice_is_refused(choices: Any, answer: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Example("prompt", choices, answer)
    assert message in str(caught.value)


def test_whole_numbers_of_any_type_are_answers() -> None:
    for answer in (1, True, np.int64(1)):
        assert Example("prompt", (" no", " yes"), answer).right == " yes"
