"""What stands for an example where they are too many to be held: a digest, and its place."""

import hashlib
from dataclasses import dataclass

from sieve.tasks.example import Example


@dataclass(frozen=True, slots=True)
class Sketch:
    """An example by the digest of what tells it from others; drawn and split as that would be."""

    content: bytes  # 8 bytes: among ten million prompts two collide once in 400,000 data sets
    role: str
    number: int  # of its row, from 1

    @classmethod
    def of(cls, example: Example, role: str, number: int) -> "Sketch":
        """The sketch of an example."""
        return cls(hashlib.blake2b(example.content.encode(), digest_size=8).digest(), role, number)
