"""The claim that each rank of VeRA may take the same learning rate. It is tested by the
trials that chose the rates: how much does a rank lose at the rate that is best for
another one?"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.frame import with_reported_scores
from analysis.inference import Array, Mean, equivalence_verdict, mean_of
from analysis.results.claims import Claim, Comparison, claims

#: The columns of `frame.runs` that the trials of one search share: the runs on training
#: rows that chose a learning rate. The scores of different searches do not compare: they
#: are measured on other data, or after other numbers of epochs.
SEARCH_COLUMNS = ["model", "task", "measured", "epochs"]


def comparisons_of_rates(runs: pd.DataFrame) -> Iterator[Comparison]:
    """The claim that ranks share a learning rate, tested on each search (SEARCH_COLUMNS)
    that tried several rates for several ranks. runs: of `frame.runs`, of which we take the
    trials."""
    trials = with_reported_scores(runs[runs.kind == "trial"])
    for claim in claims():
        if claim.kind != "rates":
            continue
        for pattern in claim.rows:
            is_of_claim = trials.row.astype(str).str.fullmatch(pattern)
            searches = trials[is_of_claim].groupby(SEARCH_COLUMNS, sort=False)
            for _, search in searches:
                if search["rank"].nunique() > 1 and search.lr.nunique() > 1:
                    yield _comparison_of_search(claim, search)


def _comparison_of_search(claim: Claim, search: pd.DataFrame) -> Comparison:
    """The claim that ranks share a learning rate, tested on one search. search: its
    trials."""
    first_trial = search.iloc[0]
    scores = score_table(search)
    seeds = search.seed.nunique()
    mean = rate_change_of_search(search)
    return Comparison(
        claim=claim,
        model=first_trial.model,
        task=first_trial.task,
        model_label=first_trial.model_label,
        task_label=first_trial.task_label,
        family=first_trial.family,
        sides=(),
        verdict=equivalence_verdict(mean),
        mean=mean,
        table=_table_lines(scores, int(first_trial.digits)),
        counts=(seeds,),
        sample_size=seeds,
        origins=(*dict.fromkeys(search.origin),),
    )


def score_table(search: pd.DataFrame) -> pd.DataFrame:
    """The score of each rank (index) at each rate and seed (columns), such that more is
    better; NaN where nothing was tried. search: the trials of one search."""
    scores = search.number.where(~search.lower_is_better.astype(bool), -search.number)
    search = search.assign(score=scores)
    table = search.pivot_table(index="rank", columns=["lr", "seed"], values="score")
    rates = sorted(search.lr.unique())
    seeds = sorted(search.seed.unique())
    return table.reindex(columns=pd.MultiIndex.from_product([rates, seeds]))


def rate_change_of_search(search: pd.DataFrame) -> Mean:
    """What `change_at_other_rates` says of a search. search: its trials."""
    scores = score_table(search)
    seeds = search.seed.nunique()
    # the columns of the table are the seeds of the first rate, then of the next one
    return change_at_other_rates(scores.to_numpy().reshape(len(scores), -1, seeds))


def change_at_other_rates(scores: Array) -> Mean:
    """How much a rank's score changes if it is trained at another rank's best learning
    rate, over seeds. It is negative where the score falls.

    Each rank's rate is chosen by the mean over all seeds but one and scored on that
    one, so that no score chooses its own rate. With one seed it is unknown (NaN).

    Args:
        scores: by rank, rate and seed; more is better, NaN where nothing was tried.

    Returns:
        The mean difference in points between a rank's score at another rank's rate and
        at its own rate, over all pairs of ranks, with its error over seeds.
    """
    ranks, _, seeds = scores.shape
    if seeds < 2 or np.isnan(scores).any():
        return Mean(math.nan, math.nan, math.nan)
    mean_by_seed = list[float]()
    for seed in range(seeds):
        means = np.delete(scores, seed, axis=2).mean(axis=2)
        best_rates = means.argmax(axis=1)
        # the score of each rank (line) at the best rate of each rank (column)
        at_best_rates = scores[:, best_rates, seed]
        # minus its score at its own best rate: 0 on the diagonal
        changes = at_best_rates - np.diag(at_best_rates)[:, None]
        mean_by_seed.append(float(changes.sum() / (ranks * (ranks - 1))))
    return mean_of(mean_by_seed)


def _table_lines(scores: pd.DataFrame, digits: int) -> list[list[str]]:
    """The lines of a table of texts: a header, then for each rank its mean at each rate
    and its best rate, with ^ if that is the smallest or the largest that was tried for
    the rank. scores: of `score_table`."""
    means = scores.T.groupby(level=0).mean().T  # over seeds, by rate
    header = ["rank", *(f"rate {rate:g}" for rate in means.columns), "best rate"]
    lines = [header]
    for rank, score_by_rate in means.iterrows():
        texts = [
            "-" if math.isnan(score) else f"{score:.{digits}f}"
            for score in score_by_rate
        ]
        tried = score_by_rate.dropna()
        best = tried.idxmax()
        mark = "^" if best in (tried.index[0], tried.index[-1]) else ""
        lines.append([f"{rank:g}", *texts, f"{best:g}{mark}"])
    return lines
