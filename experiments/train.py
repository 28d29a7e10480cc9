"""Train one model with one estimator: python -m experiments.train model=mlp estimator=forward

Any key of configs/train.yaml can be set on the command line, and `-m` makes a sweep of lists:

    python -m experiments.train -m seed=0,1,2 estimator=forward,backprop num_steps=2000

Add hydra/launcher=joblib, submitit_local, submitit_slurm or ray to make it in parallel
(docs/experiments.md, Sweeps). With the extra `tune`, Optuna searches for the learning rate of the
least validation loss:

    python -m experiments.train -m +search=optuna model=mlp estimator=backprop num_steps=2000

A run that was interrupted goes on when it is started again; a finished one is not repeated.
"""

from omegaconf import DictConfig

from experiments.common import commands, from_config


@commands.with_config("train")
def command(cfg: DictConfig) -> float:
    """Return the last validation loss, which a search by Optuna makes small."""
    record = from_config.run(cfg)
    print(f"{from_config.summary(record)}\nrecorded in {record.folder}")
    return record.info["final"]["valid_loss"]


if __name__ == "__main__":
    commands.start("experiments.train")
