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

QUESTIONS = 1319
IGNORED = {"peft_version", "auto_mapping", "base_model_name_or_path", "revision"}
IGNORED |= {"task_type", "inference_mode", "rank_pattern"}


def results_of(folders):
    """Each result once: set, row, settings, version, correct answers."""
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
            settings = {"n": train["num_trainable_params"]}
            for part in ("train_config", "peft_config"):
                for key, value in (run[part] or {}).items():
                    if key not in IGNORED:
                        ordered = (
                            sorted(map(str, value)) if type(value) is list else value
                        )
                        settings[part, key] = ordered
            version = data["meta_info"]["package_info"]["transformers-version"]
            results.append(
                {
                    "set": Path(folder).name,
                    "row": row,
                    "settings": settings,
                    "sampled": int(version.split(".")[0]) >= 5,
                    "environment": (Path(folder).name, version),
                    "correct": correct,
                    "score": 100 * correct / QUESTIONS,
                }
            )
    for result in results:
        same = [other for other in results if other["row"] == result["row"]]
        common = set.intersection(*({*other["settings"]} for other in same))
        kept = {str(key): result["settings"][key] for key in common}
        result["id"] = (result["row"], json.dumps(kept, sort_keys=True))
    return results


def two_way_variance(results):
    """Residual variance and degrees of freedom of score = row + environment, by
    subtracting means in turn until nothing changes."""
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
    """How many parts the graph of rows and environments has."""
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
    """The pairs that Holm's procedure rejects at 5%, step by step."""
    decided = set()
    for rank, pair in enumerate(sorted(p, key=p.get)):
        if p[pair] * (len(p) - rank) > 0.05:
            break
        decided.add(pair)
    return decided


def decisions(results, name, sampled_alone=True):
    """Of a set the pairs of rows that (a) and (b) decide."""
    rows = [result for result in results if result["set"] == name]
    pool = results
    if sampled_alone:
        pool = [one for one in results if one["sampled"] == rows[0]["sampled"]]
    scores = {}
    for result in pool:
        scores.setdefault(result["id"], []).append(result["score"])
    upper = {key for key, values in scores.items() if sum(values) / len(values) > 40}
    variances = {
        True: two_way_variance([one for one in pool if one["id"] in upper]),
        False: two_way_variance([one for one in pool if one["id"] not in upper]),
    }
    rerun, questions = {}, {}
    for index, left in enumerate(rows):
        for right in rows[index + 1 :]:
            pair = frozenset((left["row"], right["row"]))
            found = [variances[one["score"] > 40] for one in (left, right)]
            if all(found):
                total = found[0][0] + found[1][0]
                parts = [value**2 / freedom for value, freedom in found]
                freedom = total**2 / sum(parts)
                if found[0] == found[1]:
                    freedom = found[0][1]
                t = abs(left["score"] - right["score"]) / math.sqrt(total)
                rerun[pair] = 2 * t_tail(t, freedom)
            share = (left["correct"] + right["correct"]) / 2 / QUESTIONS
            difference = abs(left["correct"] - right["correct"]) / QUESTIONS
            error = math.sqrt(2 * share * (1 - share) / QUESTIONS)
            z = difference / error if error else 0.0
            questions[pair] = 2 * NormalDist().cdf(-z)
    return holm_decisions(rerun), holm_decisions(questions)


def package_decisions(folders):
    """By set: what analysis.leaderboard decides."""
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
        decided[board.name] = tuple(
            {pair for pair, yes in zip(pairs, of_question, strict=True) if yes}
            for of_question in (
                board.answers["rerun"].decided,
                board.answers["questions"].decided,
            )
        )
    return decided


if __name__ == "__main__":
    every_result = results_of(sys.argv[1:])
    for name, theirs in package_decisions(sys.argv[1:]).items():
        own = decisions(every_result, name)
        print(
            f"{name}: (a) {len(own[0])}, (b) {len(own[1])}, the same: {own == theirs}"
        )
        if own != theirs:
            sys.exit(
                f"{name}: the package decides (a) {len(theirs[0])}, (b) {len(theirs[1])}"
            )
