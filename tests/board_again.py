"""The decisions of docs/leaderboard.md once more, by other means: no pandas, numpy or
scipy, and nothing of analysis.leaderboard.

    python tests/board_again.py FOLDER FOLDER ...

reads the same folders, prints how many pairs each question decides in each, and ends
with an error where the package decides otherwise."""

import json
import math
import sys
from pathlib import Path
from statistics import NormalDist

#: How many exam questions GSM8K's test set has.
QUESTIONS = 1319
#: Settings of peft that do not make another row.
IGNORED = {
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "rank_pattern",
}


def results_of(folders):
    """The results in these folders as dictionaries; a result that several folders have
    occurs once, in the first. Results with one id are repetitions of one row: they have its
    name, and equal values of all settings that its results have in common."""
    results, seen = [], set()
    for folder in folders:
        for path in sorted(Path(folder).glob("*.json")):
            data = json.loads(path.read_text())
            run, train = data["run_info"], data["train_info"]
            row, date = run["experiment_name"], run["created_at"]
            correct = round(QUESTIONS * train["metrics"][-1]["test accuracy"])
            if (row, date, correct) in seen:
                continue
            seen.add((row, date, correct))
            version = data["meta_info"]["package_info"]["transformers-version"]
            result = {
                "set": Path(folder).name,
                "row": row,
                "settings": settings_of(run, train),
                "sampled": int(version.split(".")[0]) >= 5,
                "environment": (Path(folder).name, version),
                "correct": correct,
                "score": 100 * correct / QUESTIONS,
            }
            results.append(result)
    for result in results:
        results_of_row = [other for other in results if other["row"] == result["row"]]
        keys_of_results = [{*other["settings"]} for other in results_of_row]
        common_keys = set.intersection(*keys_of_results)
        settings = {str(key): result["settings"][key] for key in common_keys}
        result["id"] = (result["row"], json.dumps(settings, sort_keys=True))
    return results


def settings_of(run, train):
    """A result's settings by (part, key), and its number of parameters. run, train: the
    file's run_info and train_info."""
    settings = {"n": train["num_trainable_params"]}
    for part in ("train_config", "peft_config"):
        for key, value in (run[part] or {}).items():
            if key in IGNORED:
                continue
            if type(value) is list:  # whose order means nothing
                value = sorted(map(str, value))
            settings[part, key] = value
    return settings


def two_way_variance(results):
    """The residual variance, and its degrees of freedom, of the model score = row +
    environment. Subtracts the means of rows and of environments in turn until nothing
    changes. None without a degree of freedom."""
    counts = {}
    for result in results:
        counts[result["id"]] = counts.get(result["id"], 0) + 1
    repeated = [result for result in results if counts[result["id"]] > 1]
    residuals = [result["score"] for result in repeated]
    for _ in range(2000):
        for key in ("id", "environment"):
            groups = {}
            for index, result in enumerate(repeated):
                groups.setdefault(result[key], []).append(index)
            for members in groups.values():
                mean = math.fsum(residuals[index] for index in members) / len(members)
                for index in members:
                    residuals[index] -= mean
    rows = {result["id"] for result in repeated}
    environments = {result["environment"] for result in repeated}
    links = [(result["id"], result["environment"]) for result in repeated]
    freedom = len(repeated) - len(rows) - len(environments) + components(links)
    if freedom < 1:
        return None
    return math.fsum(value**2 for value in residuals) / freedom, freedom


def components(links):
    """How many connected parts the graph of rows and environments has. links: its edges,
    (row, environment)."""
    parts = []
    for link in links:
        joined = [part for part in parts if part & {*link}]
        rest = [part for part in parts if not part & {*link}]
        parts = [*rest, set(link).union(*joined)]
    return len(parts)


def t_tail(t, freedom):
    """P(T > t) of Student's t, by Simpson's rule over the angle whose tangent is
    t / sqrt(freedom)."""
    start, end, steps = math.atan(t / math.sqrt(freedom)), math.pi / 2, 4000
    width = (end - start) / steps

    def density(angle):
        return max(math.cos(angle), 0.0) ** (freedom - 1)

    total = density(start) + density(end)
    for step in range(1, steps):
        total += (4 if step % 2 else 2) * density(start + step * width)
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    return total * width / 3 * math.exp(log_scale) / math.sqrt(math.pi)


def holm_decisions(p):
    """The pairs that Holm's procedure decides at 5%, step by step. p: the p-value of each
    pair."""
    decided = set()
    for rank, pair in enumerate(sorted(p, key=p.get)):
        if p[pair] * (len(p) - rank) > 0.05:
            break
        decided.add(pair)
    return decided


def decisions(results, name, sampled_alone=True):
    """The pairs of rows that question (a) decides in a set, and those that (b) decides. A
    pair is a frozenset of two names.

    results: of all sets. name: the set's. sampled_alone: whether the variance of a re-run
    is estimated only from results that are sampled, or only from greedy ones, like those of
    the set."""
    rows = [result for result in results if result["set"] == name]
    pool = results
    if sampled_alone:
        pool = [r for r in results if r["sampled"] == rows[0]["sampled"]]
    variances = variances_by_level(pool)
    rerun_p, question_p = {}, {}
    for index, left in enumerate(rows):
        for right in rows[index + 1 :]:
            pair = frozenset((left["row"], right["row"]))
            left_variance = variances[left["score"] > 40]
            right_variance = variances[right["score"] > 40]
            if left_variance and right_variance:
                variance, freedom = add_variances(left_variance, right_variance)
                t = abs(left["score"] - right["score"]) / math.sqrt(variance)
                rerun_p[pair] = 2 * t_tail(t, freedom)
            share = (left["correct"] + right["correct"]) / 2 / QUESTIONS
            difference = abs(left["correct"] - right["correct"]) / QUESTIONS
            error = math.sqrt(2 * share * (1 - share) / QUESTIONS)
            z = difference / error if error else 0.0
            question_p[pair] = 2 * NormalDist().cdf(-z)
    return holm_decisions(rerun_p), holm_decisions(question_p)


def variances_by_level(results):
    """The `two_way_variance` of the results whose row has a mean above 40% (True), and of
    the others (False)."""
    scores = {}
    for result in results:
        scores.setdefault(result["id"], []).append(result["score"])
    upper = {key for key, values in scores.items() if sum(values) / len(values) > 40}
    return {
        True: two_way_variance([r for r in results if r["id"] in upper]),
        False: two_way_variance([r for r in results if r["id"] not in upper]),
    }


def add_variances(left, right):
    """The variance of a difference, and its degrees of freedom by Welch and Satterthwaite.
    left, right: variance and degrees of freedom of both sides; if they are one estimate, its
    degrees of freedom stay."""
    variance = left[0] + right[0]
    if left == right:
        return variance, left[1]
    parts = [value**2 / freedom for value, freedom in (left, right)]
    return variance, variance**2 / sum(parts)


def package_decisions(folders):
    """What analysis.leaderboard decides, by set: the same two sets of pairs as
    `decisions`."""
    from analysis.leaderboard.board import boards
    from analysis.leaderboard.inference import pair_indices
    from analysis.leaderboard.reader import read_leaderboard

    results, _ = read_leaderboard(",".join(map(str, folders)))
    decided = {}
    for board in boards(results):
        names = [*board.rows.row]
        first, second = pair_indices(len(names))
        pairs = [
            frozenset((names[left], names[right]))
            for left, right in zip(first, second, strict=True)
        ]
        pairs_by_question = []
        for question in ("rerun", "questions"):
            is_decided = board.answers[question].decided
            decided_pairs = zip(pairs, is_decided, strict=True)
            pairs_by_question.append({pair for pair, yes in decided_pairs if yes})
        decided[board.name] = tuple(pairs_by_question)
    return decided


if __name__ == "__main__":
    all_results = results_of(sys.argv[1:])
    for name, of_package in package_decisions(sys.argv[1:]).items():
        of_script = decisions(all_results, name)
        rerun, questions = map(len, of_script)
        print(
            f"{name}: (a) {rerun}, (b) {questions}, the same: {of_script == of_package}"
        )
        if of_script != of_package:
            rerun, questions = map(len, of_package)
            sys.exit(f"{name}: the package decides (a) {rerun}, (b) {questions}")
