"""The names of lines: one for each key of every config, in figures, tables and sentences.

A key ends in what varies along a line: the number of tangents (`-8`), momentum (`-momentum`), a
length (`-20s`), operations in the place of seconds (`-equal`), a rate (`-at-0.4`).
"""

import re

_NAMES = {
    "loss": "loss alone",
    "backprop": "backprop",
    "backprop-checkpointed": "backprop, checkpointed",
    "backprop-again": "backprop, a second time",
    "backprop-noise": "backprop plus independent noise",
    "backprop-grown": "backprop, norms grown as by noise",
    "noise": "noise alone",
    # The paper's estimator, which perturbs the weights, by the distribution of its tangents.
    "forward-normal": "forward gradient, dense normal",
    "forward-rademacher": "forward gradient, dense Rademacher",
    "forward-sphere": "forward gradient, dense sphere",
    "forward-low_rank": "forward gradient, low-rank",
    "forward-orthogonal": "forward gradient, orthogonal",
    "forward-block_sparse": "forward gradient, block-sparse",
    # Races.
    "control-last-layer": "last layer alone (control)",
    "control-first-frozen": "first layer frozen (control)",
    "control-convolutions-frozen": "convolutions frozen (control)",
    "activity-blocks": "activities, blocks",
    "activity-blocks-guided": "activities, blocks, control variate",
    "local-heads": "local losses, backprop",
    "local-blocks": "local losses, activity perturbation",
    "weight-low_rank": "forward gradient, low-rank",
    "weight-low_rank-exact_last": "forward gradient, low-rank, exact last",
    "feedback-fixed": "direct feedback alignment",
    "feedback-learned": "learned feedback alone",
    "feedback-chained": "learned feedback alone, chained",
    "evolution-low_rank": "evolution strategies, low-rank",
    "weight-blocks": "forward gradient, blocks",
    "weight-blocks-layerwise": "forward gradient, blocks, layer-wise, exact last",
    # The laboratory; {n} is the number of tangents.
    "weights-normal": "forward gradient, dense normal",
    "weights-rademacher": "forward gradient, dense Rademacher",
    "weights-sphere": "forward gradient, dense sphere",
    "weights-low_rank": "forward gradient, low-rank",
    "weights-orthogonal": "forward gradient, orthogonal",
    "weights-projected": "forward gradient, dense Rademacher, projection",
    "weights-blocks": "forward gradient, {n} blocks",
    "weights-clipped": "forward gradient, dense Rademacher, clipped",
    "weights-shrunk": "forward gradient, dense Rademacher, shrunk",
    "weights-momentum": "forward gradient, low-rank, control variate",
    "weights-exact_last": "forward gradient, dense Rademacher, exact last",
    "weights-exact_last-blocks": "forward gradient, {n} blocks, exact last",
    "weights-layerwise-blocks": "forward gradient, {n} blocks, layer-wise, exact last",
    "spsa": "SPSA",
    "evolution": "evolution strategies",
    "activities-rademacher": "activities, joint",
    "activities-normal": "activities, joint, normal",
    "activities-sphere": "activities, joint, sphere",
    "activities-low_rank": "activities, joint, low-rank",
    "activities-orthogonal": "activities, joint, orthogonal",
    "activities-projected": "activities, joint, projection",
    "activities-blocks": "activities, joint, {n} blocks",
    "activities-block_sparse": "activities, joint, block-sparse",
    "activities-exact": "activities, joint, exact last",
    "activities-split": "activities, layer-wise",
    "layerwise": "activities, layer-wise, exact last",
    "layerwise-orthogonal": "activities, layer-wise, exact last, orthogonal",
    "layerwise-projected": "activities, layer-wise, exact last, projection",
    "layerwise-shrunk": "activities, layer-wise, exact last, shrunk",
    "layerwise-blocks": "activities, layer-wise, exact last, {n} blocks",
    "layerwise-guided": "activities, layer-wise, exact last, control variate",
    "layerwise-blocks-guided": "activities, layer-wise, exact last, {n} blocks, control variate",
    # Divergence.
    "rank": "low-rank, rank {n}",
    "dense_signs": "dense Rademacher",
    "dense_normal": "dense normal",
    "rank_1_at_2_medians": "low-rank, rank 1, clipped at 2 medians",
    "rank_1_at_1_median": "low-rank, rank 1, clipped at 1 median",
    "rank_1_at_0.9_quantile": "low-rank, rank 1, clipped at the 0.9 quantile",
    "rank_1_clip_2": "low-rank, rank 1, derivatives clipped at 2",
}  # fmt: skip
# What a key may end in, and its words.
_ENDS = {
    r"-momentum": ", momentum",
    r"-adam": ", Adam",
    r"-denoised": ", Adam without the noise",
    r"-held": ", norms held",
    r"-cosine": ", cosine decay",
    r"-clipped": ", clipped",
    r"-guided": ", control variate",
    r"-chained": ", chained control variate",
    r"-exact-last": ", exact last",
    r"-kernels": ", noise in kernels",
    r"-projection": ", projection",
    r"-equal": ", equal operations",
    r"-times-(\d+)": ", {0} times the steps",
    r"-(\d+)s": ", {0} s",
    r"-at-([\d.e-]+)": ", rate {0}",
    r"[-_](\d+)": ", K = {0}",
}


def find_name(key: str) -> str | None:
    """Return the name of a key, or None.

    >>> find_name("layerwise-blocks-8"), find_name("backprop-momentum-10s"), find_name("mine")
    ('activities, layer-wise, exact last, 8 blocks', 'backprop, momentum, 10 s', None)
    """
    if key in _NAMES:
        return None if "{n}" in _NAMES[key] else _NAMES[key]
    for end, words in _ENDS.items():
        if match := re.fullmatch(f"(.+?){end}", key):
            base, *number = match.groups()
            if "{n}" in _NAMES.get(base, "") and words.startswith(", K"):
                return _NAMES[base].format(n=number[0])
            if name := find_name(base):
                return name + words.format(*number)
    return None


def label(key: str) -> str:
    """Return the name of a key in figures, tables and sentences; of an unknown key, the key."""
    return find_name(key) or key.replace("_", " ")


def problem_name(target: str) -> str:
    """Return the name of a problem: that of its function, or its module's for `make_problem`.

    >>> problem_name("fwdgrad.problems.digit_sum"), problem_name("mine.spirals.make_problem")
    ('digit_sum', 'spirals')
    """
    module, _, function = target.rpartition(".")
    return module.rpartition(".")[2] if function == "make_problem" else function
