"""The group of commands that measure a model."""

import typer

from cm3leon.cli import (
    evaluating_folders,
    evaluating_people,
    evaluating_reports,
    evaluating_samples,
)


def add_to(app: typer.Typer) -> None:
    """Add the group `eval`."""
    group = typer.Typer(help="Measure a model.", rich_markup_mode=None)
    for commands in (evaluating_reports, evaluating_folders, evaluating_people, evaluating_samples):
        commands.add_to(group)
    app.add_typer(group, name="eval")
