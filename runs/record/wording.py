"""The sentences of records in the words that a reader sees. A record keeps what its run
wrote, often in clipped words; tables, the report and model cards show `in_words` of
it. Nothing compares sentences."""

import re
from typing import NamedTuple


class Rule(NamedTuple):
    """How a stored sentence is shown.

    Attributes:
        pattern: A regular expression of the whole stored sentence.
        template: What is shown. {name} stands for a group of the pattern, and {name:,}
            for one that is a whole number.
        is_difference: Whether it says how a run differs from its recipe, and not merely
            what you should know of it.
    """

    pattern: str
    template: str
    is_difference: bool = True


#: Tried in this order; the whole sentence has to match.
RULES = (
    # What a run was given, and what its recipe says
    Rule(r"(?P<override>\S+=.+) given", "{override} was set by hand"),
    Rule(
        r"batches are random; the (?P<source>recipe|harness)'s are of like lengths",
        "batches are drawn at random instead of by length",
    ),
    Rule(
        r"batches are of like lengths; the (?P<source>recipe|harness)'s are random",
        "batches have rows of similar length instead of random ones",
    ),
    Rule(
        r"batches of like lengths; the protocol's are random",
        "batches have rows of similar length instead of random ones",
    ),
    Rule(
        r"alpha follows the rank \((?P<alpha>.+)\), the recipe's is constant (?P<own>.+)",
        "alpha follows the rank ({alpha}) instead of staying at the recipe's {own}",
    ),
    Rule(
        r"the recipe has no (?P<keys>.+) for this task: the harness's defaults",
        "the recipe has no {keys} for this task, so the harness's defaults apply",
    ),
    Rule(
        r"trains (?P<share>\S+%) of the model's parameters \((?P<count>[\d,]+)\), as no "
        "small adapter does",
        "trains {share} of the model's parameters ({count}): a large share, but no "
        "deviation",
        is_difference=False,
    ),
    Rule(
        r"(?P<name>\S+(?: batch)?) (?P<size>\d+), since memory ran out at (?P<before>\d+)"
        r"(?P<rest>; the effective batch stays)?",
        "{name} of {size}, because memory ran out at {before}",
    ),
    # Its rows
    Rule(
        r"\S+ train: (?P<count>\d+) rows \(a fixed subset of (?P<total>\d+)\); .+",
        "trained on {count:,} of {total:,} training rows",
    ),
    Rule(
        r"\S+ dev: (?P<count>\d+) rows \(a fixed subset of (?P<total>\d+)\); .+",
        "evaluated on {count:,} of {total:,} dev rows",
    ),
    Rule(
        r"\S+ (?P<split>train|dev): (?P<count>\d+) rows \(the files hold \d+\); "
        r"(?P<set>\S+) has (?P<published>\d+)",
        "{split} has {count:,} rows, where {set} has {published:,}",
    ),
    Rule(
        r"\S+ train: a fixed subset of (?P<count>\d+) rows, of (?P<total>\d+)",
        "trained on {count:,} of {total:,} training rows",
    ),
    Rule(
        r"\S+ dev: a fixed subset of (?P<count>\d+) images",
        "evaluated on {count:,} images",
    ),
    Rule(
        r"\S+: (?P<count>\d+) rows; (?P<set>\S+) has (?P<published>\d+)",
        "the files have {count:,} rows, where {set} has {published:,}",
    ),
    Rule(
        r"dev: (?P<count>\d+) of (?P<total>\d+) training (?P<unit>rows|images) held out"
        r"(?P<groups> in whole groups)?(?: \(task.holdout=\S+\))?(?:, the .+ not used)?",
        "scored on {count:,} held-out training {unit} of {total:,}",
    ),
    Rule(
        r"dev: (?P<count>\d+) sentences held out \(task.holdout=\S+\), (?P<left>\d+) of "
        r"(?P<total>\d+) training rows are left out with them, the dev set is not used",
        "scored on {count:,} held-out sentences, which take {left:,} of {total:,} rows "
        "from training",
    ),
    Rule(
        r"dev: (?P<count>\d+) of (?P<total>\d+) training rows \(.+ MRs\) held out .+",
        "scored on {count:,} held-out training rows of {total:,}",
    ),
    Rule(
        r"dev: fold (?P<fold>\d+) of (?P<folds>\d+), (?P<count>\d+) of (?P<total>\d+) "
        "training rows",
        "scored on fold {fold} of {folds}: {count:,} of {total:,} training rows",
    ),
    Rule(
        r"(?P<count>\d+) rows left out, whose prompt fills (?P<key>\S+)=(?P<length>\d+)",
        "{count:,} rows are left out, because their prompt fills {key}={length}",
    ),
    Rule(
        r"(?P<count>\d+) MRs are decoded, of (?P<total>\d+) in the (?P<split>\S+) set",
        "decodes {count:,} of {total:,} meaning representations of the {split} set",
    ),
    # What is read and shown of them
    Rule(
        r"images of (?P<size>\d+) pixels, not the (?P<usual>\d+) of the weights",
        "images have {size} pixels a side instead of the {usual} of pretraining",
    ),
    Rule(
        r"\S+: (?P<classes>[\d,]+) classes, (?P<train>[\d,]+) training and "
        r"(?P<test>[\d,]+) test images; .+",
        "the data has {classes} classes, {train} training and {test} test images, unlike "
        "the published set",
    ),
    Rule(
        r"prompts in this project's own words, not Alpaca's",
        "prompts have this project's wording instead of Alpaca's",
    ),
    Rule(
        r"prompts by the template (?P<name>.+), not Alpaca's",
        "prompts follow the template {name} instead of Alpaca's",
    ),
    Rule(
        r"references tokenised here with spaCy (?P<version>\S+)'s English rules.*",
        "references are tokenised with spaCy {version}, other than LoRA's dev references",
    ),
    Rule(
        r"task.(?P<key>\S+)=(?P<value>.+); the (?:protocol's is|scripts':) (?P<own>.+)",
        "task.{key} is {value} instead of {own}",
    ),
    Rule(
        r"length penalty (?P<value>\S+); the paper's is (?P<own>\S+)",
        "length penalty {value} instead of the paper's {own}",
    ),
)


def in_words(sentence: str) -> str:
    """A stored sentence as a reader sees it; one without a rule stays as it is."""
    rule, match = _rule_of(sentence)
    if rule is None or match is None:
        return sentence
    values = dict[str, str | int]()
    for name, text in match.groupdict().items():
        # such as {count:,}, which puts commas between thousands
        is_number = f"{{{name}:,}}" in rule.template
        values[name] = int(text) if is_number else text
    return rule.template.format(**values)


def is_difference(sentence: str) -> bool:
    """Whether a stored sentence says how a run differs from its recipe."""
    rule, _ = _rule_of(sentence)
    return rule is None or rule.is_difference


def _rule_of(sentence: str) -> tuple[Rule | None, re.Match[str] | None]:
    """The rule of a stored sentence and the match of its pattern; None for both if it has
    no rule."""
    for rule in RULES:
        match = re.fullmatch(rule.pattern, sentence)
        if match:
            return rule, match
    return None, None
