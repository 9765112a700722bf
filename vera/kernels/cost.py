"""Which way to compute is the cheapest: FLOPs and kept elements by shapes alone (the
table of vera/kernels/__init__.py)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How a group computes: the path, and whether its merged weights are kept for the
    backward pass."""

    path: str
    keep: bool = True


def flops(
    plan: Plan,
    tokens: int,
    inputs: int,
    outputs: int,
    rank: int,
    training: bool = True,
    pairs: int = 1,
    slower: int = 1,
) -> int:
    """FLOPs beyond the frozen layers. outputs: of all matrices of the group; pairs: how
    many different A they have. slower: how often those of weights count, which are
    computed in float32 whatever x is."""
    factor, merge = (
        2 * tokens * rank * (outputs + inputs * pairs),
        2 * outputs * inputs * rank * slower,
    )
    if not training:
        return factor if plan.path == "factor" else merge
    if plan.path == "factor":
        return 2 * factor
    gradients = (
        factor if plan.path == "hybrid" else merge + 2 * tokens * outputs * inputs
    )
    return merge * (1 if plan.keep else 2) + gradients


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
) -> Plan:
    """The cheapest plan by `flops`; `path` and `weights` force one.

    Merged weights are kept where they take no more memory than the factor path would.
    Nothing but the arguments decides: a resumed run takes the same paths as a straight
    one, and its results have the same bits."""
    fits = inputs * outputs <= tokens * (rank * pairs + outputs)
    keep = fits if weights == "auto" else weights == "keep"
    # Of equals, a merged path: it passes over activations less often.
    plans = [
        Plan(name, keep)
        for name in ("hybrid", "materialised", "factor")
        if path in ("auto", name)
    ]
    return min(
        plans,
        key=lambda plan: flops(
            plan, tokens, inputs, outputs, rank, training, pairs, slower
        ),
    )
