"""Builds a workspace of Weights & Biases for the tables, from the same definitions as analysis.tables.

    python -m analysis.dashboard entity=TEAM project=NAME      (make dashboard)
    python -m analysis.dashboard json=FILE                     what it would save, without W&B

A section for each table: the table itself as the records give it, and for each of its columns the dev metric
by epoch and the numbers that the table shows, grouped by cell. Saved again, it replaces what it has saved
before. What a run is called in W&B, and under which names its numbers are there, is in
runs/tracking.py.
"""

import contextlib
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from analysis.frame import runs
from analysis.paper import SCORES
from analysis.render import Table, markdown
from analysis.tables import TABLES, made
from runs.command import OfRecords, entry_point, open_ledger, read, setting
from runs.errors import UserError
from runs.record import Ledger, write_atomically
from runs.record.text import first_line
from runs.tracking import PROJECT, cell_key, quiet_settings

#: Panels for the numbers that tables show.
NUMBERS = {"best": "best epoch", "last": "last epoch"}
NUMBERS |= {"train_seconds": "seconds of training", "peak_memory_bytes": "memory"}
NUMBERS |= {key: name for key, (name, _) in SCORES.items()}
#: How many runs a panel shows. W&B's default is ten; a table has up to 250.
RUNS_SHOWN = 1000
#: The run of W&B that holds the tables.
TABLES_RUN = "vera-bench-tables"
#: A table as the records give it, and what the panels beside it show.
WORDS = (
    "{}\n\nMade from the records on {}; `python -m analysis.tables {}` makes it anew. The panels are W&B's"
    " view of the runs that were sent to it: one line or bar a cell (row@model@task), W&B's own median over"
    " its runs, whatever their settings; it samples long histories, and its own panels show means. Numbers"
    " for a paper come from the records."
)
COLUMNS = [
    *("summary:status", "summary:best", "summary:last", "summary:best_epoch", "summary:metric"),
    *("summary:parameters/adapter", "config:train.value.lr", "config:cell.value.seed"),
]


def workspace(ledger: Ledger, entity: str, project: str) -> Any:
    """The workspace (wandb_workspaces.workspaces.Workspace) for all tables."""
    import wandb_workspaces.workspaces as ws

    sections = [_section(name, table, ledger) for name, table in _tables(ledger).values() if table.tasks]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="vera-bench: the paper's tables",
        sections=[_medians(logged_tables(ledger)), *sections],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=RUNS_SHOWN),
        runset_settings=ws.RunsetSettings(
            filters="Tags() not in ['trial']",
            groupby=[ws.Metric("Group")],
            order=[ws.Ordering(ws.Metric("Group"))],
            pinned_columns=COLUMNS,
        ),
    )


def _tables(ledger: Ledger) -> dict[str, tuple[str, Table]]:
    """Every table with its name in TABLES, by the key that it is logged under."""
    frame = runs(ledger)
    parts = {name: made(name, frame) for name in TABLES}
    return {
        f"tables/{name}" + f"_{number}" * (len(of) > 1): (name, table)
        for name, of in parts.items()
        for number, table in enumerate(of, 1)
    }


def logged_tables(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """The columns and texts of each table that has runs, which are logged as a wandb.Table."""
    return {
        key: {"title": table.title, "columns": table.header, "data": table.texts}
        for key, (_, table) in _tables(ledger).items()
        if table.ids
    }


def _log(tables: dict[str, dict[str, Any]], entity: str, project: str, output: str) -> None:
    """Logs the tables in one run of W&B, always the same: a panel would join the tables of several runs."""
    import wandb

    of: dict[str, Any] = {"entity": entity, "project": project, "dir": output}
    of |= {"job_type": "tables", "tags": ["tables"], "settings": quiet_settings()}
    name = "tables: medians over seeds"
    with wandb.init(id=TABLES_RUN, resume="allow", name=name, **of) as run:
        run.log({key: wandb.Table(table["columns"], table["data"]) for key, table in tables.items()})


def _medians(tables: dict[str, dict[str, Any]]) -> Any:
    """The section with the logged tables."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2 import interface as wr

    panels: list[Any] = []
    for key, table in tables.items():
        panels.append(wr.MarkdownPanel(markdown=table["title"], layout=wr.Layout(w=24, h=2)))
        panels.append(wr.WeavePanelSummaryTable(table_name=key, layout=wr.Layout(w=24, h=10)))
    layout = ws.SectionLayoutSettings(columns=1, rows=2)
    return ws.Section(name="Tables from records", panels=panels, is_open=True, layout_settings=layout)


def _section(name: str, table: Table, ledger: Ledger) -> Any:
    """A table's section: open where there are records of its own."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2 import interface as wr

    alike: dict[str, Any] = {"groupby": wr.Metric("Group"), "groupby_aggfunc": "median"}
    alike |= {"groupby_rangefunc": "minmax", "max_runs_to_show": RUNS_SHOWN}
    panels: list[Any] = [wr.MarkdownPanel(markdown=WORDS.format(markdown(table), date.today(), name))]
    for task, label in table.tasks.items():
        cell = cell_key(table.model, task)
        title = f"{label}: dev metric by epoch"
        panels.append(wr.LinePlot(title=title, x="epoch", y=[f"{cell}/dev"], **alike))
        for number in table.shows:
            title, metric = f"{label}: {NUMBERS[number]}", f"{cell}/{number}"
            panels.append(wr.BarPlot(title=title, metrics=[metric], max_bars_to_show=100, **alike))
            if number in ("best", "last"):
                x, y = wr.SummaryMetric("parameters/adapter"), wr.SummaryMetric(metric)
                panels.append(wr.ScatterPlot(title=f"{title} by trainable parameters", x=x, y=y, log_x=True))
    ours = any(r["cell"]["model"] == table.model and r["cell"]["task"] in table.tasks for r in ledger)
    layout = ws.SectionLayoutSettings(columns=3, rows=3)
    return ws.Section(name=table.title, panels=panels, is_open=ours, layout_settings=layout)


def spec(workspace: Any) -> dict[str, Any]:
    """The workspace as W&B stores it, without asking W&B."""
    view = workspace._to_model()
    content: dict[str, Any] = view.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"entity": view.entity, "project": view.project, "name": view.display_name, "spec": content}


def check_account() -> None:
    """Raises UserError where nobody is logged in, or the server does not answer: wandb would retry for many
    minutes. Sets wandb quiet and online for the rest of this process."""
    import wandb

    os.environ |= {"WANDB_MODE": "online", "WANDB_SILENT": "true"}
    url, why = str(wandb.setup().settings.base_url).rstrip("/"), ""
    if not wandb.login(prompt=False, verify=False):
        raise UserError(f"not logged in to {url}. Run `wandb login`, or set WANDB_API_KEY")
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except urllib.error.HTTPError as error:  # an answer, such as "not found"
        why = f"it answers {error.code}" if error.code >= 500 else ""
    except (OSError, ValueError) as error:  # with the system's reason inside
        reason = getattr(error, "reason", error)
        why = getattr(reason, "strerror", None) or str(reason)
    if why:
        raise UserError(f"{url} cannot be reached ({why})")


def save(ledger: Ledger, entity: str | None, project: str, output: str) -> str:
    """Saves the workspace to W&B, in place of the one saved before. Returns its address."""
    import wandb
    import wandb_workspaces.workspaces as ws

    entity = entity or os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
    if not entity:
        raise ValueError("no entity: name one: entity=NAME")
    saved, remembered = workspace(ledger, entity, project), Path(output) / "wandb" / "dashboard.url"
    with contextlib.suppress(Exception):  # none was saved, or it has been deleted
        before = ws.Workspace.from_url(remembered.read_text().strip())
        if (before.entity, before.project) == (entity, project):
            before.name, before.sections = saved.name, saved.sections
            before.settings, before.runset_settings = saved.settings, saved.runset_settings
            saved = before
    if tables := logged_tables(ledger):
        _log(tables, entity, project, output)
    saved.save()
    write_atomically(remembered, f"{saved.url}\n")
    return str(saved.url)


@dataclass(frozen=True)
class Settings(OfRecords):
    """Where the workspace goes."""

    json: str | None = setting(None, "write the workspace to this file (-: the terminal), not to W&B")
    entity: str | None = setting(None, "the user or team it belongs to (WANDB_ENTITY, or the user's own)")
    project: str | None = setting(None, "the project that runs are sent to (WANDB_PROJECT, or vera-bench)")


def main(arguments: list[str]) -> int:
    settings = read(arguments, Settings).settings
    file, entity = settings.json, settings.entity
    name = settings.project or os.environ.get("WANDB_PROJECT") or PROJECT
    if not file:
        check_account()
    ledger = open_ledger(settings.output, published=False)  # as W&B has them
    try:
        if file:
            whole = spec(workspace(ledger, entity or os.environ.get("WANDB_ENTITY") or "", name))
            text = json.dumps(whole | {"tables": logged_tables(ledger)}, indent=1)
        else:
            text = f"Dashboard: {save(ledger, entity, name, settings.output)}"
    except Exception as error:
        raise UserError(f"the dashboard was not saved ({first_line(error)})") from error
    if file and file != "-":
        write_atomically(Path(file), f"{text}\n")
        text = f"Dashboard: {file}"
    print(text)
    return 0


if __name__ == "__main__":
    entry_point(main)
