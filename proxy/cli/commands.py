"""The commands and their options, as people see them in ``--help``.

Each command loads its own module when it is called, so that ``--help`` and ``--version`` load none. (No ``from __future__
import annotations`` here: typer reads the annotations.)
"""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="The configuration file, instead of the usual places.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Port = Annotated[
    int | None, typer.Option("--port", metavar="N", min=0, max=65535, help="The port, instead of the configured one.")
]
Unread = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Taken for uniformity: this command reads no configuration."),
]


def application() -> typer.Typer:
    """The command line, made anew. Plain help texts: loading rich would cost more than all the rest."""
    app = typer.Typer(
        name="lava-proxy",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for command in (serve, demo, init, check, token, health, emulator):
        app.command()(command)
    return app


def _version(asked: bool) -> None:
    if asked:
        from proxy import __version__

        typer.echo(f"lava-proxy {__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    config: Config = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A local forwarding proxy for the Lava AI gateway: point your tool's base URL at it.

    New here? "lava-proxy demo" shows it at work, without an account and without a network.
    """
    context.obj = config


def _config(context: typer.Context, given: Path | None) -> Path | None:
    """The file named behind the command, else the one named before it."""
    before = context.obj
    return given or (before if isinstance(before, Path) else None)


def serve(
    context: typer.Context,
    host: Annotated[
        list[str] | None, typer.Option("--host", metavar="H", help="An address to listen on; may be given again.")
    ] = None,
    port: Port = None,
    config: Config = None,
) -> None:
    """Run the daemon."""
    from proxy.cli.serve import run

    raise typer.Exit(run(_config(context, config), host or (), port))


def demo(
    context: typer.Context,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
    port: Annotated[
        int | None, typer.Option("--port", metavar="N", min=0, max=65535, help="Default: 5282, or a free one.")
    ] = None,
    as_json: AsJson = False,
    config: Unread = None,
) -> None:
    """See it work: no account, no network.

    Starts an offline Lava and the real daemon, sends real requests through both, and shows each with the command to repeat it.
    """
    from proxy.cli.demo import run

    raise typer.Exit(run(keep=keep, port=port, as_json=as_json))


def init(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Option("--path", metavar="FILE", help="Where to; default: your configuration directory.")
    ] = None,
    as_json: AsJson = False,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="The same as --path.")] = None,
) -> None:
    """Write a first configuration. Never overwrites.

    It has a comment at each setting, a fresh local key, and mode 0600.
    """
    from proxy.cli.init import run

    raise typer.Exit(run(path, _config(context, config), as_json=as_json))


def check(context: typer.Context, as_json: AsJson = False, config: Config = None) -> None:
    """Validate the configuration; say who pays.

    For each project: who pays, which Lava, which base URLs and which key to give to a tool.
    """
    from proxy.cli.check import run

    raise typer.Exit(run(_config(context, config), as_json=as_json))


def token(
    context: typer.Context,
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="A project of the configuration.")],
    provider: Annotated[str | None, typer.Argument(metavar="[PROVIDER]", help="Such as openai or anthropic.")] = None,
    reveal: Annotated[bool, typer.Option("--reveal", help="Print the token itself: it can spend money.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Show the token that a project sends to Lava.

    It is decoded, and the keys in it are masked.
    """
    from proxy.cli.token import run

    raise typer.Exit(run(_config(context, config), project, provider, reveal=reveal, as_json=as_json))


def health(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option("--host", metavar="H", help="Where it listens, if not as configured.")
    ] = None,
    port: Port = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Ask whether the running daemon is ready.

    Exits with 0 when it is, else with 1 and the reason.
    """
    from proxy.cli.health import run

    raise typer.Exit(run(_config(context, config), host, port, as_json=as_json))


def emulator(
    context: typer.Context,
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes any free port.")] = 5283,
    as_json: AsJson = False,
    config: Unread = None,
) -> None:
    """Run the offline Lava alone, to try things against."""
    from proxy.cli.emulator import run

    raise typer.Exit(run(port, as_json=as_json))
