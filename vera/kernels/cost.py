"""Which way to compute is the cheapest: FLOPs and kept elements by shapes alone (the
table of vera/kernels/__init__.py)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelPlan:
    """How a group computes: the path, and whether its merged weights are kept for the
    backward pass."""

    path: str
    keep: bool = True


def added_flops(
    plan: KernelPlan,
    tokens: int,
    inputs: int,
    outputs: int,
    rank: int,
    training: bool = True,
    pairs: int = 1,
    slower: int = 1,
) -> int:
    """FLOPs beyond the frozen layers.

    Args:
        plan: How the group computes.
        tokens: Rows of the input.
        inputs: Columns of the input.
        outputs: Of all matrices of the group together.
        rank: Of the changes.
        training: Whether gradients are computed, too.
        pairs: How many different A the matrices have.
        slower: How often the FLOPs of weights count, which are computed in float32
            whatever the input is.

    Returns:
        The number of FLOPs, by the table of vera/kernels/__init__.py.
    """
    factors = 2 * tokens * rank * (outputs + inputs * pairs)
    merge = 2 * outputs * inputs * rank * slower
    if plan.path == "factor":
        return 2 * factors if training else factors
    if not training:
        return merge
    merges = 1 if plan.keep else 2
    if plan.path == "hybrid":
        return merges * merge + factors
    return merges * merge + merge + 2 * tokens * outputs * inputs


def choose(
    tokens: int,
    inputs: int,
    outputs: int,
    rank: int,
    training: bool = True,
    pairs: int = 1,
    path: str = "auto",
    weights: str = "auto",
    slower: int = 1,
) -> KernelPlan:
    """The cheapest plan by `added_flops`.

    Nothing but the arguments decides: a resumed run takes the same paths as a straight
    one, and its results have the same bits.

    Args:
        tokens: As for `added_flops`, and so are those without a word here.
        inputs: See `added_flops`.
        outputs: See `added_flops`.
        rank: See `added_flops`.
        training: See `added_flops`.
        pairs: See `added_flops`.
        path: Forces a path, unless it is "auto".
        weights: "keep" keeps merged weights for the backward pass, "recompute" does
            not. "auto" keeps them where they take no more memory than the factor path
            would.
        slower: See `added_flops`.

    Returns:
        The plan.
    """
    keep = weights == "keep"
    if weights == "auto":
        keep = inputs * outputs <= tokens * (rank * pairs + outputs)

    def cost(plan: KernelPlan) -> int:
        return added_flops(plan, tokens, inputs, outputs, rank, training, pairs, slower)

    # Of equals, a merged path: it passes over activations less often.
    names = ("hybrid", "materialised", "factor")
    plans = [KernelPlan(name, keep) for name in names if path in ("auto", name)]
    return min(plans, key=cost)
