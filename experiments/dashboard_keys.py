"""Every key of a W&B run that the dashboards read.

A test runs Sieve and checks that it logs every key that a workspace or report uses.
"""

# Settings, as paths into the configuration.
TASK = "task.name"
MODEL = "model.name"
PROJECTION = "projection.name"
SEARCH = "search.method"
RECOVERY = "recovery.method"
QUANTIZATION = "quantization.method"
TOKENS_ASKED = "calibration.tokens"
TOLERANCE = "tolerance"
SEED = "seed"

# Figures to compare runs by, one value per run.
KEPT = "report/kept_fraction"
KEPT_OF_MODEL = "report/kept_fraction_model"
BYTES = "report/bytes_fraction"
DENSE_ACCURACY = "report/dense_accuracy"
ACCURACY = "report/accuracy"
DROP = "report/drop"
DROP_LOW = "report/drop_low"
DROP_HIGH = "report/drop_high"
PREFILL = "report/prefill_ratio"
DECODE = "report/decode_ratio"
MEMORY = "report/peak_memory_mib"
TOKENS = "report/calibration_tokens"
EVALUATIONS = "report/evaluations"
EXAMPLES = "report/examples"
STAGE_SECONDS = "report/stage_seconds"
SECONDS = tuple(
    f"{stage}/seconds"
    for stage in ("calibrate", "fit", "search", "refit", "recover", "evaluate", "export")
)

# Series, each with its own step.
SIZE = "curve/kept_fraction"
SIZE_ACCURACY = "curve/accuracy"
CURVE_KEPT = "search/kept_fraction"
CURVE_ACCURACY = "search/accuracy"
CURVE_DIVERGENCE = "search/divergence"
GENERATION = "generations/generation"
GENERATION_BEST = "generations/best"
GENERATION_MEDIAN = "generations/median"
GENERATION_EVALUATED = "generations/evaluated"
GENERATION_SECONDS = "generations/seconds"
RECOVERY_STEP = "recovery/step"
RECOVERY_LOSS = "recovery/loss"
RECOVERY_ACCURACY = "recovery/accuracy"

# The drop on the test rows of the other Almanac data sets, as in `conf/domain/almanac.yaml`.
ALMANAC = tuple(
    f"almanac_{domain}{form}"
    for domain in ("geography", "medicine", "reading", "reviews")
    for form in ("", "_alternate")
)
DROPS_ON = tuple(f"drop_on/{name}" for name in ALMANAC)

# Figures.
ACCURACY_CURVE = "figures/accuracy_curve"
DIVERGENCE_FRONT = "figures/divergence_front"
GENERATIONS = "figures/generations"
KEPT_HEATMAP = "figures/kept_heatmap"
BOTTLENECKS = "figures/bottlenecks"
SPECTRUM = "figures/spectrum"

# Tables.
GENOMES = "tables/genomes"
MATRICES = "tables/matrices"
BOTTLENECK_ROWS = "tables/bottlenecks"
TESTS = "tables/tests"
