"""The forward pass that computes the probabilities of sampled tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from runs.training.policy_gradient import token_entropies


@dataclass(frozen=True)
class PolicyRow:
    """A row of the forward pass, and the sampled tokens that it predicts.

    ids: the token ids of the input. positions: for each sampled token, the index in
    `ids` whose output predicts it. advantages, weights: of each sampled token, as
    `policy_loss` takes them. reference: the log-probabilities of the sampled tokens
    under the model at the start of training; empty without a divergence
    (reward.kl=0)."""

    ids: list[int]
    positions: list[int]
    tokens: list[int]
    advantages: list[float]
    weights: list[float]
    reference: list[float] = field(default_factory=list)


def policy_rows(
    prompt: list[int],
    completions: Sequence[list[int]],
    advantages: Sequence[float],
    weights: Sequence[float],
) -> list[PolicyRow]:
    """The rows of a prompt's completions. All completions of one token share a row,
    which is the prompt: only the token after it has to be predicted.

    completions: the token ids of each. advantages, weights: of each completion."""
    last = len(prompt) - 1
    if all(len(completion) == 1 for completion in completions):
        row = PolicyRow(
            ids=prompt,
            positions=[last] * len(completions),
            tokens=[completion[0] for completion in completions],
            advantages=[*advantages],
            weights=[*weights],
        )
        return [row]
    rows = []
    for completion, advantage, weight in zip(
        completions, advantages, weights, strict=True
    ):
        count = len(completion)
        row = PolicyRow(
            ids=prompt + completion[:-1],  # nothing is predicted from the last token
            positions=list(range(last, last + count)),
            tokens=completion,
            advantages=[advantage] * count,
            weights=[weight] * count,
        )
        rows.append(row)
    return rows


@dataclass(frozen=True)
class TokenTensors:
    """What `policy_loss` needs of the sampled tokens of several rows, row by row
    (tokens,)."""

    log_p: Tensor
    entropies: Tensor
    advantages: Tensor
    weights: Tensor


def token_tensors(
    model: Any, rows: Sequence[PolicyRow], temperature: float
) -> TokenTensors:
    """The log-probabilities and entropies of the rows' tokens at a temperature. model:
    see `log_probabilities_at`."""
    # Each pair of a row and a position is computed once: all tokens that it predicts
    # share its output.
    output_indices: dict[tuple[int, int], int] = {}
    output_of_token = []
    for number, row in enumerate(rows):
        for position in row.positions:
            index = output_indices.setdefault((number, position), len(output_indices))
            output_of_token.append(index)
    inputs = [row.ids for row in rows]
    log_probabilities = log_probabilities_at(
        model, inputs, [*output_indices], temperature
    )
    device, dtype = log_probabilities.device, log_probabilities.dtype
    with torch.no_grad():
        entropies = token_entropies(log_probabilities)
    token_outputs = torch.tensor(output_of_token, device=device)
    tokens = list[int]()
    advantages = list[float]()
    weights = list[float]()
    for row in rows:
        tokens += row.tokens
        advantages += row.advantages
        weights += row.weights
    return TokenTensors(
        log_p=log_probabilities[token_outputs, torch.tensor(tokens, device=device)],
        entropies=entropies[token_outputs],
        advantages=torch.tensor(advantages, dtype=dtype, device=device),
        weights=torch.tensor(weights, dtype=dtype, device=device),
    )


def log_probabilities_at(
    model: Any,
    inputs: Sequence[list[int]],
    positions: Sequence[tuple[int, int]],
    temperature: float,
) -> Tensor:
    """The log-probabilities of the token after each of these positions.

    Args:
        model: a causal language model of transformers, which data parallel may wrap.
        inputs: token ids of each input.
        positions: pairs of an input's index in `inputs` and a token's index in it.
        temperature: what the logits are divided by.

    Returns:
        (positions, vocabulary), in float32 or better."""
    device = next(model.parameters()).device
    ids = torch.zeros((len(inputs), max(map(len, inputs))), dtype=torch.long)
    for number, tokens in enumerate(inputs):
        ids[number, : len(tokens)] = torch.tensor(tokens)
    row_index, position_index = torch.tensor(positions, device=device).T

    def select_positions(module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (arguments[0][row_index, position_index],)

    # The output layer is half of a small model's work, so it gets these positions alone.
    # transformers' logits_to_keep would take the same ones of every input. Data parallel
    # keeps the model in `module`.
    head = getattr(model, "module", model).get_output_embeddings()
    hook = head.register_forward_pre_hook(select_positions)
    try:
        # No mask is needed: padding stands to the right, where no token looks.
        logits = model(input_ids=ids.to(device), use_cache=False).logits
    finally:
        hook.remove()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (logits / temperature).log_softmax(-1)
