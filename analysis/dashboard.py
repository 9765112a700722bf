"""Logs the tables to Weights & Biases, with a workspace that shows them and the curves
of their cells.

vera-bench dashboard entity=TEAM project=NAME
    also: make dashboard

A table is logged as the records give it. A panel for each model and task has the dev
metric by epoch, with one line for each cell. Saving the workspace again replaces what
was saved before. runs/tracking/content.py says what a run is called in W&B, and under which
names its numbers are there.
"""

import contextlib
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.frame import runs
from analysis.render import Table
from analysis.tables import TABLES, tables_of_runs
from runs.command.errors import UserError
from runs.command.parser import RecordSettings, entry_point, read_command_line, setting
from runs.command.records import open_ledger
from runs.record.files import write_atomically
from runs.record.ledger import Ledger
from runs.record.text import first_line
from runs.tracking.content import cell_key
from runs.tracking.tracker import PROJECT, quiet_settings

#: How many runs a panel shows. W&B's default is ten.
RUNS_SHOWN = 1000
#: The run of W&B that holds the tables.
TABLES_RUN = "vera-bench-tables"


def logged_tables(ledger: Ledger) -> dict[str, Table]:
    """The tables that have runs, by the key that each is logged under in W&B. Of a table
    with several parts, such as one for each model, each part has a number:
    "tables/table2_1"."""
    frame = runs(ledger)
    tables = dict[str, Table]()
    for name in TABLES:
        parts = tables_of_runs(name, frame)
        for number, table in enumerate(parts, 1):
            suffix = f"_{number}" if len(parts) > 1 else ""
            if table.ids:
                tables[f"tables/{name}{suffix}"] = table
    return tables


def workspace(
    ledger: Ledger, tables: dict[str, Table], entity: str, project: str
) -> Any:
    """The workspace (wandb_workspaces.workspaces.Workspace): a panel for each table, and
    one for the curves of each model and task. It is not saved yet. tables: those of
    `logged_tables`."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2 import interface as wr

    # W&B's grid is 24 units wide, so that each panel takes a whole line
    title_layout = wr.Layout(w=24, h=2)
    table_layout = wr.Layout(w=24, h=10)
    panels = list[Any]()
    for key, table in tables.items():
        panels.append(wr.MarkdownPanel(markdown=table.title, layout=title_layout))
        panels.append(wr.WeavePanelSummaryTable(table_name=key, layout=table_layout))
    models_and_tasks = sorted(
        {(record["cell"]["model"], record["cell"]["task"]) for record in ledger}
    )
    shared_settings: dict[str, Any] = {
        "x": "epoch",
        "groupby": wr.Metric("Group"),
        "groupby_aggfunc": "median",
        "groupby_rangefunc": "minmax",
        "max_runs_to_show": RUNS_SHOWN,
    }
    curves: list[Any] = [
        wr.LinePlot(
            title=f"{task}, {model}: dev metric",
            y=[f"{cell_key(model, task)}/dev"],
            **shared_settings,
        )
        for model, task in models_and_tasks
    ]
    tables_section = ws.Section(
        name="Tables from records",
        panels=panels,
        is_open=True,
        layout_settings=ws.SectionLayoutSettings(columns=1, rows=2),
    )
    curves_section = ws.Section(
        name="Curves (W&B's medians over its runs)", panels=curves, is_open=True
    )
    return ws.Workspace(
        entity=entity,
        project=project,
        name="vera-bench: the paper's tables",
        sections=[tables_section, curves_section],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=RUNS_SHOWN),
        # describe_run gives this tag to runs that are in no table: trials of a search,
        # and runs that were stopped early
        runset_settings=ws.RunsetSettings(
            filters="Tags() not in ['trial']", groupby=[ws.Metric("Group")]
        ),
    )


def check_account() -> None:
    """Raises UserError where nobody is logged in, or the server does not answer: wandb
    would retry for many minutes. Sets wandb quiet and online for the rest of this
    process."""
    import wandb

    os.environ |= {"WANDB_MODE": "online", "WANDB_SILENT": "true"}
    url = str(wandb.setup().settings.base_url).rstrip("/")
    if not wandb.login(prompt=False, verify=False):
        raise UserError(
            f"not logged in to {url}. Run `wandb login`, or set WANDB_API_KEY"
        )
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except (OSError, ValueError) as error:
        # A status below 500, such as 404, shows that the server answers. Other errors
        # have no status.
        if getattr(error, "code", 500) >= 500:
            raise UserError(
                f"{url} cannot be reached ({getattr(error, 'reason', error)})"
            ) from None


def save_workspace(
    ledger: Ledger, entity: str | None, project: str, output: str
) -> str:
    """Logs the tables, and saves the workspace in place of the one that was saved before.
    Returns its address, which is also kept in OUTPUT/wandb/dashboard.url to find it
    again.

    entity: None for that of the environment (WANDB_ENTITY), or the account's own."""
    import wandb
    import wandb_workspaces.workspaces as ws

    entity = entity or os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
    if not entity:
        raise ValueError("no entity: name one: entity=NAME")
    tables = logged_tables(ledger)
    url_file = Path(output) / "wandb" / "dashboard.url"
    current = workspace(ledger, tables, entity, project)
    # The workspace of an earlier call is changed in place, so that it keeps its address.
    # Any error means that none was saved, or that it has been deleted.
    with contextlib.suppress(Exception):
        previous = ws.Workspace.from_url(url_file.read_text().strip())
        if (previous.entity, previous.project) == (entity, project):
            previous.name = current.name
            previous.sections = current.sections
            previous.settings = current.settings
            previous.runset_settings = current.runset_settings
            current = previous
    if tables:  # always in one run of W&B: a panel would join the tables of several
        run_settings: dict[str, Any] = {
            "id": TABLES_RUN,
            "name": "tables: medians over seeds",
            "tags": ["tables"],
            "entity": entity,
            "project": project,
            "dir": output,
            "settings": quiet_settings(),
        }
        with wandb.init(job_type="tables", resume="allow", **run_settings) as run:
            logged = dict[str, Any]()
            for key, table in tables.items():
                logged[key] = wandb.Table([*table.header], table.texts)
            run.log(logged)
    current.save()
    write_atomically(url_file, f"{current.url}\n")
    return str(current.url)


@dataclass(frozen=True)
class Settings(RecordSettings):
    """Where the workspace goes."""

    entity: str | None = setting(
        None, "the user or team it belongs to (WANDB_ENTITY, or the user's own)"
    )
    project: str | None = setting(
        None, "the project that runs are sent to (WANDB_PROJECT, or vera-bench)"
    )


def main(arguments: list[str]) -> int:
    settings = read_command_line(arguments, Settings).settings
    project = settings.project or os.environ.get("WANDB_PROJECT") or PROJECT
    check_account()
    # the published runs were not sent to the user's project
    ledger = open_ledger(settings.output, published=False)
    try:
        url = save_workspace(ledger, settings.entity, project, settings.output)
    except Exception as error:
        raise UserError(f"the dashboard was not saved ({first_line(error)})") from error
    print(f"Dashboard: {url}")
    return 0


if __name__ == "__main__":
    entry_point(main)
