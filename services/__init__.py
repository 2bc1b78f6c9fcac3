"""The service around the library: HTTP, database, Ray. Nothing in `wmss` imports from here."""

import sys

from wmss.extras import extra_of, missing


def main() -> None:
    """The `wmss` command. Where the library was installed without what a command needs, it ends in one line."""
    try:
        from services import cli  # typer, rich and the rest may be missing

        cli.main()
    except ModuleNotFoundError as error:
        extra = extra_of(error)
        if extra is None:
            raise
        sys.exit(f"error {missing(extra, 'this command', error)}")
