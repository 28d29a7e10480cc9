"""Activity perturbation (Ren et al. 2023): independent noise for each example.

The loss is a mean of the losses ℓ_n of N examples. Noise ξ_n enters at each site z of example n
(`fwdgrad.perturbation.sites`), a pre-activation. Pushed forward it gives the example's own
directional derivative d_n = Σ_z ⟨∂ℓ_n/∂z, ξ_n⟩. So d_n ξ_n is an unbiased estimate of ∂ℓ_n/∂z.
Pulled back through the one linear operation z = x W + b it is an estimate for W and b:

    (1/N) Σ_n x_nᵀ (d_n ξ_n)        (1/N) Σ_n d_n ξ_n

The variance grows with the number of units, not of weights. Reverse mode goes no further than
through that operation and the activation or pooling after it.

The variance is lowered further by `layerwise`, by `exact_last`, where a post-activation is flat or
narrows (`fwdgrad.perturbation.post_activation`), and by a guess of the derivatives
(`fwdgrad.perturbation.control_variates`).
"""

from dataclasses import dataclass, fields
from typing import get_args

from fwdgrad.perturbation.activity_evaluation import AtActivities, FeedbackUse
from fwdgrad.perturbation.loss import Loss
from fwdgrad.util.trees import PyTree


@dataclass(frozen=True)
class Activities:
    """Activity perturbation: noise at pre-activations, independent for each example.

    `fun` is the mean loss over a minibatch. All positional arguments after the parameters have the
    examples as their first axis; keyword arguments are the same for all. `fun` is evaluated for
    each example by itself, as a minibatch of one, and value and gradient are the mean over these,
    also of a `fun` that sums. So examples must not change each other's loss: no batch
    normalisation, no weights or masks normalised over the minibatch, and for dropout an array of
    keys, one for each example, by position. `check_examples_independent` compares values to find
    out. Aux is stacked: an array that has shape s for a minibatch of one comes as (N, *s).

    The model may be of any library and is not changed. Noise enters where the loss's jaxpr has a
    product, a convolution, a sum or a lookup with a parameter, or after the pooling that follows. A
    parameter that is used in another way (Σ W², weights that are scanned over) gets noise itself
    for that use, the same for all examples.

    Distributions sample the noise of an example, a list of arrays, one for each site.

    Args:
      layerwise: push the noise of each site forward separately, so that the derivative along it is
        known alone. The cost is K tangents for each site, from that site on, so it grows with the
        square of the number of sites.
      exact_last: take the exact derivative at the last sites, from which no way to the loss leads
        through another parameter: reverse mode through the loss function alone (softmax minus
        one-hot). A value is not last if it meets a value of another parameter in a product, even
        behind `stop_gradient`. Elementwise products with fixed arrays count as the loss function.
      at_kernels: put the noise of a layer into its parameters, drawn for each example, where its
        value has at least four times as many entries, as that of a first convolution has. This
        noise has fewer entries, and is pushed through the layer, too. Not with a feedback alone.
      feedback: the use of the guess c = A e that `.guided()` adds. "corrected": a control variate,
        noise estimates the rest, so the estimate is unbiased. "alone": c is the derivative by the
        pre-activation, and noise only learns A, as in FDFA (Bacho and Chu 2022, who learn A as a
        running mean). "fixed": no noise; A is random, of entries from U(±1/√units) that depend on
        the first parameters, and stays: direct feedback alignment (Nøkland 2016). The last two
        are biased. c is zero where the post-activation is flat, and is not multiplied by its slope.
      chained: make the guess at a layer of the guess at the next one, pulled back through that
        layer with learned arrays B in the place of its weights or kernel. Which later units are on
        is then known to it, and all positions of a convolution teach its B. With "fixed" this is
        feedback alignment (Lillicrap et al. 2016). Not with `at_kernels`.

    >>> import jax, jax.numpy as jnp, fwdgrad
    >>> def loss(params, x, y):
    ...     return jnp.mean((jnp.tanh(x @ params["w"]) @ params["u"] - y) ** 2)
    >>> value_and_grad = fwdgrad.forward_value_and_grad(loss, space=Activities(layerwise=True))
    >>> params = {"w": jnp.ones((3, 4)), "u": jnp.ones(4)}
    >>> value, grad = value_and_grad(jax.random.key(0), params, jnp.ones((5, 3)), jnp.zeros(5))
    >>> value.shape, grad["w"].shape
    ((), (3, 4))

    Source: Ren, Kornblith, Liao, Hinton, Scaling forward gradient with local losses (2023).
    """

    layerwise: bool = False
    exact_last: bool = False
    at_kernels: bool = False
    feedback: FeedbackUse = "corrected"
    chained: bool = False

    def __post_init__(self) -> None:
        if self.feedback not in get_args(FeedbackUse):
            known = ", ".join(get_args(FeedbackUse))
            raise ValueError(f"feedback must be one of {known}; found {self.feedback!r}.")
        if self.at_kernels and self.feedback != "corrected":
            raise ValueError(
                f"feedback={self.feedback!r} is a derivative by the value of a layer, and "
                "at_kernels=True puts noise into its parameters; leave out one of them."
            )
        if self.at_kernels and self.chained:
            raise ValueError(
                "chained=True guesses derivatives by the values of layers, and at_kernels=True "
                "puts noise into their parameters; leave out one of them."
            )

    def at(self, loss: Loss, guess: PyTree = None) -> AtActivities:
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        return AtActivities(loss, guess, **options)
