"""The command that makes a corpus out of public packages: data emoji."""

from pathlib import Path
from typing import Annotated

import typer

from cm3leon.cli import options


def emoji(
    out: Annotated[Path, typer.Option(help="The folder of tars, edits and questions to write.")],
    packages: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="A folder of the packages: what is there is not fetched, what is fetched is kept "
            "there; OUT.packages if not given.",
        ),
    ] = None,
    npm: Annotated[
        str, typer.Option(envvar="NPM_CONFIG_REGISTRY", help="An npm registry.")
    ] = "https://registry.npmjs.org",
    debian: Annotated[
        str,
        typer.Option(help="A Debian mirror, or a snapshot of one once the package is gone there."),
    ] = "https://deb.debian.org/debian",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, show_default=False, help="Processes; one a core if not given."),
    ] = None,
) -> None:
    """Remake the corpus of emoji, icons and clip art from packages of npm and Debian.

    Fetches about 203 MB, by fixed versions and hashes; a killed run goes on where it stopped. Needs
    the extra cm3leon[emoji].
    """
    from train.emoji.build import main

    typer.echo(main(out, packages, npm=npm, debian=debian, jobs=jobs, say=options.say))
