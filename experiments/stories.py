"""What a story-telling model writes with 75 % or 50 % of its parameters.

    python -m experiments.stories

Greedy continuations of the same openings by the dense model, by `output` (plain, uniform) and by
the defaults without refit. Written to `longer.md`.
"""

import torch

from experiments.pages import write_blocks
from experiments.projections import FOLDER, METHODS, genomes
from experiments.subjects import TextSubject
from sieve.bank.bank import fit
from sieve.bank.switch import Switch
from sieve.calibration.calibration import calibrate
from sieve.projections import get_projection

LEVELS = (0.75, 0.5)
NEW_TOKENS = 48
OPENINGS = (
    "Once upon a time there was a little dog who",
    "Tom had a red ball. One day, the ball",
    "The sun was warm and the cat wanted to",
)


def main() -> None:
    """Write the block of `longer.md`."""
    subject = TextSubject("lm_tinystories", "stories-656k")
    written = {"dense": [continued(subject, opening) for opening in OPENINGS]}
    for name in ("output", "sieve"):
        method = METHODS[name]
        moments = calibrate(
            subject.model,
            subject.calibration(0),
            needs=get_projection(method.projection).needs,
            answers=method.answers,
            weighting=method.weighting,
        )
        bank = fit(subject.model, moments, method.projection, method.storage)
        for level, genome in genomes(bank, method, LEVELS):
            with Switch(subject.model, bank, as_stored=False).to(genome):
                written[f"{name}, {level:g} kept"] = [continued(subject, text) for text in OPENINGS]
    rows = ["| model | " + " | ".join(f"*{opening} …*" for opening in OPENINGS) + " |"]
    rows.append("|" + "---|" * (len(OPENINGS) + 1))
    rows += [f"| {name} | " + " | ".join(stories) + " |" for name, stories in written.items()]
    write_blocks(FOLDER / "longer.md", {"stories": "\n".join(rows)})


@torch.inference_mode()
def continued(subject: TextSubject, opening: str) -> str:
    """The model's continuation of an opening, in one line."""
    tokenizer = subject.backbone.tokenizer
    ids = torch.tensor([tokenizer(opening)["input_ids"]])
    out = subject.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )[0]
    story = tokenizer.decode(out, skip_special_tokens=True).strip().removeprefix(opening)
    return story.split("</")[0].replace("|", "/").replace("\n", " ").strip()


if __name__ == "__main__":
    main()
