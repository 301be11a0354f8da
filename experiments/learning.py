"""Does gradient descent beat the closed form? Output errors of `learned` and `output`.

    python -m experiments.learning

For every matrix of two models at 30 % of its parameters: the mean relative output error of the
closed form, and of the paper's training (free or tied, from each start, with its step count).
"""

import logging
from statistics import mean

from torch import Tensor

from experiments.projections import STEPS, make_subject
from sieve.bank.bank import fit
from sieve.bank.learned import learn
from sieve.calibration.calibration import calibrate
from sieve.model.matrices import dense_weight
from sieve.projections import Factors
from sieve.projections.moments import Moment, Needs
from sieve.projections.output import output

log = logging.getLogger(__name__)
SUBJECTS = ("almanac_medicine/embedded", "lm_tinystories/stories-656k")
STARTS = ((False, "optimal"), (True, "optimal"), (True, "pca"), (True, "random"))
LEVEL = 0.3


def output_error(weight: Tensor, moment: Moment, factors: Factors, rank: int) -> float:
    """E‖W x − U V x‖² / E‖W x‖² of the first `rank` directions, from E[x xᵀ]."""
    weight, second = weight.double(), moment.input_second()
    error = weight - factors.u[:, :rank].double() @ factors.v[:rank].double()
    return float(((error @ second) * error).sum() / ((weight @ second) * weight).sum())


def main() -> None:
    """Log one line per subject, variant and start."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in SUBJECTS:
        subject = make_subject(name)
        model, batches = subject.model, subject.calibration(0)[:8]
        moments = calibrate(model, batches, needs=Needs(input=True))
        bank = fit(model, moments, "output")
        ranks = {m.name: bank.sizing.rank(m, LEVEL) or 1 for m in bank.matrices}
        given = {
            m.name: (dense_weight(model.get_submodule(m.name)).detach(), moments.of(m))
            for m in bank.matrices
        }
        best = {n: output_error(w, m, output(w, m), ranks[n]) for n, (w, m) in given.items()}
        log.info("%s: closed form %.5f", name, mean(best.values()))
        for tied, init in STARTS:
            factors = learn(
                model, batches, ranks, moments, tied, init, epochs=STEPS // len(batches)
            )
            found = {n: output_error(w, m, factors[n], ranks[n]) for n, (w, m) in given.items()}
            log.info(
                "  %s, from %s: %.5f; best against the closed form, of all matrices: %+.1e",
                "tied" if tied else "free",
                init,
                mean(found.values()),
                min(found[n] - best[n] for n in best),
            )


if __name__ == "__main__":
    main()
