"""Problems to train: data sets, models and test functions of optimisation.

Imports the front door and `fwdgrad.util` alone, and contains no training code. Needs Equinox and
optax.
"""

from fwdgrad.util.validation import missing_extra

try:
    from fwdgrad.problems.blockwise import Frozen, LocalHeads
    from fwdgrad.problems.checks import check_problem
    from fwdgrad.problems.datasets import DATASET_NAMES, Dataset, load_dataset
    from fwdgrad.problems.digit_pairs import digit_sum
    from fwdgrad.problems.files import DataError, Examples
    from fwdgrad.problems.functions import (
        TEST_FUNCTIONS,
        beale,
        rosenbrock,
        sphere,
        styblinski_tang,
    )
    from fwdgrad.problems.idx import read_idx
    from fwdgrad.problems.models import CNN, MLP, DeepNetwork, LogisticRegression
    from fwdgrad.problems.problem import (
        ImageSets,
        Loader,
        Problem,
        image_classification,
        made_for,
        standardised,
    )
    from fwdgrad.problems.row_reader import RowReader, sequence
    from fwdgrad.problems.teacher_student import regression
    from fwdgrad.problems.transformer import Transformer, language_model
except ModuleNotFoundError as error:
    raise missing_extra("fwdgrad.problems", error) from error

__all__ = [
    "CNN",
    "DATASET_NAMES",
    "MLP",
    "TEST_FUNCTIONS",
    "DataError",
    "Dataset",
    "DeepNetwork",
    "Examples",
    "Frozen",
    "ImageSets",
    "Loader",
    "LocalHeads",
    "LogisticRegression",
    "Problem",
    "RowReader",
    "Transformer",
    "beale",
    "check_problem",
    "digit_sum",
    "image_classification",
    "language_model",
    "load_dataset",
    "made_for",
    "read_idx",
    "regression",
    "rosenbrock",
    "sequence",
    "sphere",
    "standardised",
    "styblinski_tang",
]
