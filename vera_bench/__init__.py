"""The command vera-bench: each of its commands is a module, and only that one is
imported."""

from typing import NamedTuple


class Command(NamedTuple):
    """A command of vera-bench. module: the module whose main() runs it. description: its
    line in the list of commands."""

    module: str
    description: str


#: The commands by their names, in the order in which they are shown.
COMMANDS = {
    "run": Command("runs.__main__", "trains; also without its name, KEY=VALUE"),
    "plan": Command("runs.plan", "what a command would do, and for how long"),
    "tune": Command("runs.tune", "learning rates, on rows held out from training"),
    "table": Command("analysis.tables.__main__", "your results next to the paper's"),
    "figure": Command("analysis.figures.__main__", "the paper's figures and your own"),
    "stats": Command("analysis.stats", "paired differences with intervals"),
    "findings": Command("analysis.findings", "the paper's claims, with verdicts"),
    "records": Command("analysis.records", "the records as one table"),
    "report": Command("analysis.report", "one page of everything that is recorded"),
    "evaluate": Command("runs.evaluate", "checks a finished run again"),
    "predict": Command("runs.predict", "what a finished run says about new rows"),
    "mistakes": Command("runs.mistakes", "the rows that a finished run has wrong"),
    "export": Command("runs.export", "an adapter for peft, a server or the hub"),
    "publish": Command("runs.publish", "finished records, to share and to keep"),
    "serve": Command("vera_bench.serve", "many adapters over HTTP"),
    "diff": Command("analysis.diff", "two records side by side"),
    "counts": Command("runs.counts", "trainable parameters of each method"),
    "measure": Command("runs.measure", "the measurements behind figures 3, 5 and 6"),
    "judge": Command("runs.judge", "has a judge score a run's answers"),
    "answer": Command("runs.answer", "MT-Bench's questions to a finished run"),
    "lm-eval": Command("runs.lm_eval", "tasks of lm-evaluation-harness"),
    "dashboard": Command("analysis.dashboard", "tables and curves in W&B"),
    "notebooks": Command("analysis.notebooks.__main__", "executes the notebooks"),
    "list": Command("vera_bench.names", "models, tasks or methods"),
}
