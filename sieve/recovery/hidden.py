"""Hidden states of decoder blocks, on which a pruned model is trained to equal the dense one.

An answer says little about a row, and the states of all its tokens much, so a training on states
needs fewer rows (Jiao et al., arXiv:1909.10351, for smaller models of another shape).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sieve.data.batches import as_inputs, as_targets
from sieve.model.matrices import block_paths

BLOCKS = 6  # whose outputs are compared, evenly spaced; the last block is one of them


def compared_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder blocks whose outputs are compared, from first to last."""
    paths = block_paths(model)
    count = min(BLOCKS, len(paths))
    places = [(place + 1) * len(paths) // count - 1 for place in range(count)]
    return [model.get_submodule(paths[place]) for place in places]


@contextmanager
def outputs_of(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list with the latest output (B, T, d) of each block that ran inside the context."""
    outputs = [torch.empty(0)] * len(blocks)

    def note(index: int, block: nn.Module, args: object, output: Tensor | tuple[Tensor]) -> None:
        outputs[index] = output[0] if isinstance(output, tuple) else output

    with ExitStack() as hooks:
        for index, block in enumerate(blocks):
            hooks.enter_context(block.register_forward_hook(partial(note, index)))
        yield outputs


def states(batch: object, outputs: Sequence[Tensor], answers_only: bool) -> list[Tensor]:
    """Hidden states (tokens, d) of a batch's rows, by block, without padding and common prefix.

    Args:
        batch: of left-padded rows (B, T).
        outputs: of blocks, (B, T', d) for the last T' tokens of the rows.
        answers_only: only the tokens from which an answer is predicted. Rows that two models read
            with different prompts have no others in common.
    """
    return [output[_places(batch, output.shape[1], answers_only)] for output in outputs]


def _places(batch: object, width: int, answers_only: bool) -> Tensor:
    """A mask (B, width) of tokens."""
    if answers_only:
        return as_targets(batch)[:, -width:] >= 0
    inputs = as_inputs(batch)
    if "attention_mask" not in inputs:
        return torch.ones_like(inputs["input_ids"][:, -width:], dtype=torch.bool)
    # A prefix that ran before is in the mask of each row, in front of its padding.
    return inputs["attention_mask"][:, :width].bool()


def relative_error(dense: Sequence[Tensor], pruned: Sequence[Tensor]) -> Tensor:
    """‖pruned − dense‖² / ‖dense‖² of a token's state, mean over tokens and blocks."""
    errors = [
        ((p.float() - d.float()).square().sum(-1) / d.float().square().sum(-1)).mean()
        for d, p in zip(dense, pruned, strict=True)
    ]
    return torch.stack(errors).mean()
