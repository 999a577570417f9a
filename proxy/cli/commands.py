"""The commands and their options, as people see them in ``--help``.

Each command loads its own module when it is called, so that ``--help`` and ``--version`` load none. (No ``from __future__
import annotations`` here: typer reads the annotations.)
"""

from pathlib import Path
from typing import Annotated, Literal

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

Since = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="A span such as 30d or 12h, a date, or a time.")
]
OfProject = Annotated[str | None, typer.Option("--project", metavar="NAME", help="Only of this project.")]


def application() -> typer.Typer:
    """Return a new command line. The help texts are plain: loading rich would cost more than everything else."""
    app = typer.Typer(
        name="lava-proxy",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for command in (serve, demo, init, check, token, health, emulator, login, logout, whoami):
        app.command()(command)
    for asking in (wallet, connections, usage, models, checkout):
        app.command()(asking)
    app.add_typer(_keys(), name="keys")
    for reading in (logs, stats, cost, export):
        app.command()(reading)
    for comparing in (reconcile, close):
        app.command()(comparing)
    for stopping in (stop, resume):
        app.command()(stopping)
    app.add_typer(_ledger(), name="ledger")
    # Its arguments are parsed by the table of the account API, --help included.
    app.command(
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    )(api)
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
    """Return the file named after the command, or else the one named before it."""
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
    import signal
    import sys

    # Until the server handles signals itself: a stop while it is being loaded is a clean one, also for PID 1.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
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
    reference: Annotated[
        bool, typer.Option("--reference", help="Print every setting with its default instead, and write nothing.")
    ] = False,
    as_json: AsJson = False,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="The same as --path.")] = None,
) -> None:
    """Write a first configuration. Never overwrites.

    It has a comment at each setting, a fresh local key, and mode 0600.
    """
    from proxy.cli.init import run, show_reference

    if reference:
        raise typer.Exit(show_reference(as_json=as_json))
    raise typer.Exit(run(path, _config(context, config), as_json=as_json))


def check(
    context: typer.Context,
    online: Annotated[
        bool, typer.Option("--online", help="Ask Lava, too: do key, connection and meter exist, and is there money?")
    ] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Validate the configuration; say who pays.

    For each project: who pays, which Lava, which base URLs and which key to give to a tool. And where the ledger is, whether
    it can be written, and what it lost.
    """
    from proxy.cli.check import run

    raise typer.Exit(run(_config(context, config), as_json=as_json, online=online))


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
    environment: Annotated[
        Literal["live", "test"] | None,
        typer.Option("--environment", help="Know the keys of one environment only; default: both."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="FILE", help="Keep keys, money and customers between starts.")
    ] = None,
    biller: Annotated[
        list[str] | None,
        typer.Option("--biller", metavar="NAME=VALUE", help="How it bills, such as lost=0.05; may be given again."),
    ] = None,
    as_json: AsJson = False,
    config: Unread = None,
) -> None:
    """Run the offline Lava alone, to try things against.

    It answers "You said: …"; if a request has a JSON schema, with a value that fits; and calls a tool that is forced, or
    that the message names: "call NAME", followed by its arguments as JSON. A model called fault-NAME
    fails, such as fault-lava-402, fault-cut-after-3 or fault-slow-5; fault-list lists them all.
    """
    from proxy.cli.emulator import run

    raise typer.Exit(run(port, environment, state, biller or [], as_json=as_json))


def login(
    context: typer.Context,
    app: Annotated[
        str, typer.Option("--app", metavar="URL", help="Lava's site, or a sandbox or an emulator instead.")
    ] = "https://www.lava.so",
    page: Annotated[
        Literal["connect", "cli"], typer.Option("--page", help="The login page there: of SDK 11.2, or of 9 to 11.1.")
    ] = "connect",
    code: Annotated[
        str | None,
        typer.Option(
            "--code",
            metavar="CODE",
            help="The code, or the address that contains it, from a browser elsewhere; - reads it.",
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open one, or only print the address.")
    ] = True,
    keyring: Annotated[
        bool, typer.Option("--keyring/--no-keyring", help="Keep the key in the system's keyring, or in a file.")
    ] = True,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Log in to Lava with your browser.

    Gets a secret key and keeps it, in the system's keyring or in a file that only you can read. The daemon and all other
    commands then use it, unless the configuration or LAVA_SECRET_KEY names another.
    """
    from proxy.cli.login import run

    raise typer.Exit(
        run(
            _config(context, config),
            app=app,
            page=page,
            code=code,
            browser=browser,
            keyring=keyring,
            as_json=as_json,
        )
    )


def logout(
    context: typer.Context,
    revoke: Annotated[bool, typer.Option("--revoke", help="Delete the key at Lava, too.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Forget the login."""
    from proxy.cli.login import logout

    raise typer.Exit(logout(_config(context, config), revoke=revoke, as_json=as_json))


def whoami(context: typer.Context, as_json: AsJson = False, config: Config = None) -> None:
    """Show the login.

    Exits with 1 if there is no login.
    """
    from proxy.cli.login import whoami

    raise typer.Exit(whoami(_config(context, config), as_json=as_json))


def api(context: typer.Context) -> None:
    """Call Lava's account API: "api --help" lists all of it."""
    from proxy.cli.api import run

    raise typer.Exit(run(_config(context, None), context.args))


def wallet(context: typer.Context, as_json: AsJson = False, config: Config = None) -> None:
    """Show your wallet's balance."""
    from proxy.cli.wallet import run

    raise typer.Exit(run(_config(context, config), as_json=as_json))


def connections(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many at most.")] = 100,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """List your customers, with their plans and credit."""
    from proxy.cli.connections import run

    raise typer.Exit(run(_config(context, config), limit=limit, as_json=as_json))


def usage(
    context: typer.Context,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="A span such as 30d or 12h, a date, or a time.")
    ] = "30d",
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="The same; default: now.")] = None,
    customer: Annotated[
        str | None, typer.Option("--customer", metavar="ID", help="Only of this customer (connection).")
    ] = None,
    meter: Annotated[str | None, typer.Option("--meter", metavar="ID", help="Only of this meter.")] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Show usage and costs by day."""
    from proxy.cli.usage import run

    raise typer.Exit(
        run(_config(context, config), since=since, until=until, customer=customer, meter=meter, as_json=as_json)
    )


def models(
    context: typer.Context,
    provider: Annotated[str | None, typer.Option("--provider", metavar="NAME", help="Only of this provider.")] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """List the models that Lava knows."""
    from proxy.cli.models import run

    raise typer.Exit(run(_config(context, config), provider, as_json=as_json))


def _keys() -> typer.Typer:
    group = typer.Typer(
        help="Make and list spend keys.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    group.callback()(_take_config)
    group.command("create")(keys_create)
    group.command("list")(keys_list)
    return group


def _take_config(context: typer.Context, as_json: AsJson = False, config: Config = None) -> None:
    # The options have the same meaning after "keys" and after its subcommand.
    context.obj = (_config(context, config), as_json)


def _taken(context: typer.Context, as_json: bool, config: Path | None) -> tuple[Path | None, bool]:
    before, asked = context.obj
    return config or before, as_json or asked


def keys_create(
    context: typer.Context,
    name: Annotated[str | None, typer.Option("--name", metavar="TEXT", help="A name for people.")] = None,
    provider: Annotated[
        list[str] | None, typer.Option("--provider", metavar="NAME", help="Only this provider; may be given again.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME", help="Only this model; may be given again.")
    ] = None,
    limit: Annotated[
        str | None, typer.Option("--limit", metavar="$/CYCLE", help="So many dollars, such as 50/monthly.")
    ] = None,
    requests: Annotated[
        str | None, typer.Option("--requests", metavar="N/CYCLE", help="So many requests, such as 1000/daily.")
    ] = None,
    rpm: Annotated[int | None, typer.Option("--rpm", metavar="N", min=1, help="So many requests a minute.")] = None,
    burst: Annotated[
        int | None, typer.Option("--burst", metavar="N", min=1, help="So many at once, with --rpm.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="When it ends: 30d, a date, or a time.")
    ] = None,
    shape: Annotated[
        Literal["openai", "anthropic"] | None, typer.Option("--shape", help="The one shape of request it takes.")
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Create a spend key: for one tool, with limits.

    Its value is shown only once.
    """
    from proxy.cli.keys import create

    file, as_json = _taken(context, as_json, config)
    raise typer.Exit(
        create(
            file,
            name=name,
            providers=provider or (),
            models=model or (),
            limit=limit,
            requests=requests,
            rpm=rpm,
            burst=burst,
            expires=expires,
            shape=shape,
            as_json=as_json,
        )
    )


def keys_list(context: typer.Context, as_json: AsJson = False, config: Config = None) -> None:
    """List the spend keys, with what they have spent."""
    from proxy.cli.keys import show

    file, as_json = _taken(context, as_json, config)
    raise typer.Exit(show(file, as_json=as_json))


def checkout(
    context: typer.Context,
    origin: Annotated[str, typer.Option("--origin", metavar="URL", help="The page that the checkout opens in.")],
    connection: Annotated[
        str | None, typer.Argument(metavar="[CONNECTION]", help="The customer; a subscription may make a new one.")
    ] = None,
    plan: Annotated[str | None, typer.Option("--plan", metavar="ID", help="Subscribe to this plan.")] = None,
    bundle: Annotated[str | None, typer.Option("--bundle", metavar="ID", help="Buy this credit bundle.")] = None,
    old_names: Annotated[
        bool, typer.Option("--old-names", help="Use the names of SDK 8: connections and configs.")
    ] = False,
    opens: Annotated[bool, typer.Option("--open", help="Open the address in a browser, if Lava gives one.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Create a checkout: a plan or credit for a customer."""
    from proxy.cli.checkout import run

    raise typer.Exit(
        run(
            _config(context, config),
            customer=connection,
            plan=plan,
            bundle=bundle,
            origin=origin,
            old_names=old_names,
            opens=opens,
            as_json=as_json,
        )
    )


def logs(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Show those that come, until Ctrl-C.")] = False,
    project: OfProject = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Asked for, or served.")] = None,
    tool: Annotated[str | None, typer.Option("--tool", metavar="NAME", help="Such as claude-code or codex.")] = None,
    session: Annotated[
        str | None,
        typer.Option("--session", metavar="ID", help="As the tool sends it, or as stats --by session shows it."),
    ] = None,
    outcome: Annotated[str | None, typer.Option("--outcome", metavar="WORD", help="Such as ok or timeout.")] = None,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=100_000, help="How many at most.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per line, for scripts.")] = False,
    config: Config = None,
) -> None:
    """Show the requests of the ledger, the newest last.

    Each with its tokens and what it cost: billed, pending, estimated, unmetered or unknown; ~ marks an estimate.
    """
    from proxy.cli.ledger_logs import run

    raise typer.Exit(
        run(
            _config(context, config),
            project=project,
            model=model,
            tool=tool,
            session=session,
            outcome=outcome,
            since=since,
            limit=limit,
            follow=follow,
            as_json=as_json,
        )
    )


def stats(
    context: typer.Context,
    by: Annotated[
        Literal["project", "provider", "model", "tool", "session", "day", "hour"],
        typer.Option("--by", help="What each line is."),
    ] = "project",
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="A span such as 30d or 12h, a date, or a time.")
    ] = "30d",
    project: OfProject = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Show usage and cost by project, model, tool, day …

    Dollars by their source. Errors are all outcomes but ok and client_gone; p50 and p95 are times to the first byte.
    """
    from proxy.cli.ledger_stats import run

    raise typer.Exit(run(_config(context, config), by=by, since=since, project=project, as_json=as_json))


def cost(
    context: typer.Context,
    git: Annotated[
        str | None,
        typer.Option("--git", metavar="A..B", help="Between two commits of the repository in the current directory."),
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="Of a session and its sub-agents.")
    ] = None,
    project: OfProject = None,
    since: Since = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Show what a range of commits or a session cost.

    Without an option: all of the last 30 days. The output says which requests it counts.
    """
    from proxy.cli.ledger_cost import run

    raise typer.Exit(
        run(_config(context, config), git=git, session=session, project=project, since=since, as_json=as_json)
    )


def export(
    context: typer.Context,
    form: Annotated[
        Literal["csv", "jsonl", "parquet"],
        typer.Option("--format", help="Parquet needs the extra: lava-proxy[parquet]."),
    ] = "csv",
    since: Since = None,
    project: OfProject = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where to; default: standard output.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format jsonl.")] = False,
    config: Config = None,
) -> None:
    """Write the requests as CSV, JSON lines or Parquet."""
    from proxy.cli.ledger_export import run

    raise typer.Exit(
        run(_config(context, config), form=form, since=since, project=project, output=output, as_json=as_json)
    )


SettledAfter = Annotated[
    str | None,
    typer.Option(
        "--settled-after",
        metavar="SPAN",
        help="A request that Lava has no record of after this time is taken as missing.  [default: 1h]",
    ),
]


def reconcile(
    context: typer.Context,
    since: Annotated[str, typer.Option("--since", metavar="WHEN", help="A span or an instant.")] = "7d",
    settled_after: SettledAfter = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Compare the ledger with Lava's records, day by day.

    What is matched, only here (and why), only at Lava, and what differs. A running daemon books the costs by itself.
    """
    from proxy.cli.ledger_books import run_reconcile

    raise typer.Exit(run_reconcile(_config(context, config), since=since, settled_after=settled_after, as_json=as_json))


def close(
    context: typer.Context,
    month: Annotated[str, typer.Argument(metavar="YYYY-MM", help="Such as 2026-11, of UTC.")],
    settled_after: SettledAfter = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Close a month: every difference of the two books by cause.

    Exits with 0 only if no request and no dollar is unexplained.
    """
    from proxy.cli.ledger_books import run_close

    raise typer.Exit(run_close(_config(context, config), month, settled_after=settled_after, as_json=as_json))


Stopped = Annotated[str | None, typer.Argument(metavar="PROJECT", help="A project of the configuration.")]
OfTool = Annotated[
    str | None, typer.Option("--tool", metavar="NAME", help="Of this tool alone, such as claude-code or codex.")
]
OfSession = Annotated[
    str | None,
    typer.Option("--session", metavar="ID", help="Of this session alone, as the tool sends it or as logs shows it."),
]


def stop(
    context: typer.Context,
    project: Stopped = None,
    tool: OfTool = None,
    session: OfSession = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Stop a project, a tool or a session at once.

    Its requests in flight are ended, and new ones refused until "lava-proxy resume", also after a restart. Without
    arguments: show what is stopped.
    """
    from proxy.cli.stop import run

    raise typer.Exit(run(_config(context, config), "stop", project, tool, session, as_json=as_json))


def resume(
    context: typer.Context,
    project: Stopped = None,
    tool: OfTool = None,
    session: OfSession = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Allow again what was stopped.

    With a project alone: also the tools and sessions stopped in it.
    """
    from proxy.cli.stop import run

    raise typer.Exit(run(_config(context, config), "resume", project, tool, session, as_json=as_json))


def ledger_heal(
    context: typer.Context,
    since: Annotated[
        str | None, typer.Option("--since", metavar="WHEN", help="How far back.  [default: ledger.reconcile_since]")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what other programs, or without our id, was sent.")
    ] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Rebuild lost requests from Lava's records.

    What ran and what it cost, without timings. Needs the daemon stopped if the ledger is a file.
    """
    from proxy.cli.ledger_books import run_heal

    file, as_json = _taken(context, as_json, config)
    raise typer.Exit(run_heal(file, since=since, everything=everything, as_json=as_json))


def _ledger() -> typer.Typer:
    group = typer.Typer(
        help="Look after the ledger.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    group.callback()(_take_config)
    group.command("status")(ledger_status)
    group.command("check")(ledger_check)
    group.command("prune")(ledger_prune)
    group.command("migrate")(ledger_migrate)
    group.command("heal")(ledger_heal)
    group.command("dead-letters")(ledger_dead_letters)
    return group


def ledger_status(context: typer.Context, as_json: AsJson = False, config: Config = None) -> None:
    """Show where it is, its size, and what it holds."""
    from proxy.cli.ledger_status import status

    file, as_json = _taken(context, as_json, config)
    raise typer.Exit(status(file, as_json=as_json))


def ledger_check(context: typer.Context, as_json: AsJson = False, config: Config = None) -> None:
    """Check that it is sound, and its sums right.

    Exits with 1 when something is wrong. Reads every row: minutes for millions of them.
    """
    from proxy.cli.ledger_status import check

    file, as_json = _taken(context, as_json, config)
    raise typer.Exit(check(file, as_json=as_json))


def ledger_prune(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Remove requests older than ledger.keep.

    A running daemon does so by itself.
    """
    from proxy.cli.ledger_upkeep import run_prune

    file, as_json = _taken(context, as_json, config)
    raise typer.Exit(run_prune(file, dry_run=dry_run, as_json=as_json))


def ledger_migrate(context: typer.Context, as_json: AsJson = False, config: Config = None) -> None:
    """Bring its schema up to date.

    The daemon does so when it starts.
    """
    from proxy.cli.ledger_upkeep import run_migrate

    file, as_json = _taken(context, as_json, config)
    raise typer.Exit(run_migrate(file, as_json=as_json))


def ledger_dead_letters(
    context: typer.Context,
    action: Annotated[
        Literal["list", "replay", "delete"], typer.Argument(metavar="[list|replay|delete]", help="Default: list.")
    ] = "list",
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Which ones.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without a question.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Usage records that could not be delivered.

    The daemon keeps what Lava refused until it is replayed or deleted by hand.
    """
    from proxy.cli.ledger_letters import run

    file, as_json = _taken(context, as_json, config)
    raise typer.Exit(run(file, action, ids or (), all_=everything, yes=yes, as_json=as_json))
