"""``lava-proxy demo``: the offline Lava and the real daemon in this process, real requests through both.

Nothing is simulated except Lava: the daemon is the one that ``serve`` runs (sockets, access, tokens, upstream connections),
in a thread; the requests are sent by a separate HTTP client; the token shown is the one that arrived at the emulator, and
the balances are the emulator's. Each step has an expected result; any other result makes the exit code 1.
"""

from __future__ import annotations

import http.client
import json
import secrets
import signal
import threading
import time
import tomllib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxy.cli import addresses, payers
from proxy.cli.demo_client import DemoRequest, DemoResponse
from proxy.cli.terminal import Exit, Screen, put_json, say
from proxy.protocol.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from decimal import Decimal

    from proxy.config.settings import Settings
    from proxy.daemon import Daemon
    from proxy.emulator import Emulator, World
    from proxy.observe.logs import Logs

PORT = 5282
PACE_S = 0.06
"""Time between two parts of a streamed answer: slow enough to watch."""

# The same at every start, so that a command copied from one run works in the next. They open a daemon that holds play
# money only.
WEBSITE_KEY, EMPTY_KEY, WRONG_KEY = "demo-website-key", "demo-empty-wallet-key", "demo-wrong-lava-key"

CONFIGURATION = """\
default_project = "website"

[server]
host = "127.0.0.1"
port = {port}

[lava]
secret_key = "{secret_key}"
base_url = "{base_url}"

[projects.website]
connection_id = "conn_demo"
meter = "website-chat"
keys = ["{website}"]

[projects.empty-wallet]
connection_id = "conn_empty"
meter = "website-chat"
keys = ["{empty}"]

[projects.wrong-lava-key]
secret_key = "{unknown_key}"
keys = ["{wrong}"]
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One request of the demo. ``wrong`` returns what differs from the expected answer, or an empty string."""

    name: str
    title: str
    why: str
    call: DemoRequest
    status: int
    wrong: Callable[[DemoResponse], str]
    shows_token: bool = False


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """The result of a step."""

    step: Step
    answer: DemoResponse | None
    fault: str
    token: dict[str, object] | None
    payer: str | None
    charged: Decimal

    @property
    def ok(self) -> bool:
        return not self.fault


def run(*, keep: bool, port: int | None, as_json: bool, world: World | None = None) -> int:
    """Run the demo. Return the exit code: 0 only if every step got the expected result. Ctrl-C ends ``keep``."""
    from proxy.emulator import Emulator, World

    world = world or World.demo()
    world.pace = PACE_S
    unknown_key = "aks_live_" + secrets.token_hex(12)
    screen = None if as_json else Screen()
    with ExitStack() as stack:
        interrupt = stack.enter_context(_interrupt())
        emulator = stack.enter_context(Emulator(world))
        log = stack.enter_context(_log([*world.key_values(), unknown_key]))
        daemon = _started(stack, emulator, unknown_key, port, log)
        if isinstance(daemon, int):
            return daemon
        base = daemon.addresses[0]
        before = _balances(world)
        if screen is not None:
            _introduce(screen, base, emulator.base_url)
        outcomes = []
        for number, step in enumerate(steps(base), 1):
            interrupt.check()
            outcomes.append(_perform(step, number, screen, world, interrupt))
        interrupt.check()
        after = _balances(world)
        code = Exit.OK if all(outcome.ok for outcome in outcomes) else Exit.FAILED
        if screen is None:
            put_json(_document(outcomes, before, after, base, emulator.base_url))
        else:
            _conclude(screen, outcomes, before, after, base, keep=keep)
        if keep:
            log.set_level("info")  # from here on, one line for each request of the user's own tools
            while not interrupt.asked:
                time.sleep(0.1)
    return code


# --- daemon, log and signals -----------------------------------------------------------------------------------------


class _Interrupt:
    """Ctrl-C and SIGTERM: recorded first, and raised in ``check``. An exception at any point could leave a lock of the log
    or of a thread taken, and the exit would wait for it. The second signal is raised at once."""

    def __init__(self) -> None:
        self.asked = False

    def note(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` if a signal arrived."""
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def _interrupt() -> Iterator[_Interrupt]:
    interrupt = _Interrupt()
    former: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C
                former[number] = signal.signal(number, interrupt.note)
    try:
        yield interrupt
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def _log(keys: Iterable[str]) -> Iterator[Logs]:
    """Start a log of warnings only, while the demo prints its own output."""
    from proxy.config.settings import LogSettings
    from proxy.observe.logs import configure
    from proxy.protocol.redaction import Redactor

    log = configure(LogSettings(level="warning"), Redactor(keys))
    try:
        yield log
    finally:
        log.close()


def _started(stack: ExitStack, emulator: Emulator, unknown_key: str, port: int | None, log: Logs) -> Daemon | int:
    """Start the daemon on `port` (default: 5282, or any free port). Return it, or an exit code."""
    from proxy.app import create_app
    from proxy.daemon import CannotListen, background

    wanted = [PORT, 0] if port is None else [port]
    for number in wanted:
        settings = configured(emulator, unknown_key, number)
        try:
            return stack.enter_context(background(settings, create_app=lambda given: create_app(given, log=log)))
        except CannotListen as fault:
            if number == wanted[-1]:
                say(f"lava-proxy: {fault}")
                return fault.exit_code
    raise AssertionError("unreachable")


def configured(emulator: Emulator, unknown_key: str, port: int) -> Settings:
    """Return the demo's own configuration. It is no file, and contains nothing of the user's environment."""
    from proxy.config.settings import Settings

    text = CONFIGURATION.format(
        port=port,
        secret_key=emulator.world.secret_key,
        base_url=emulator.base_url.rstrip("/"),
        unknown_key=unknown_key,
        website=WEBSITE_KEY,
        empty=EMPTY_KEY,
        wrong=WRONG_KEY,
    )
    return Settings.model_validate(tomllib.loads(text))


# --- the steps -------------------------------------------------------------------------------------------------------


def steps(base: str) -> list[Step]:
    """Return the requests, in the order in which they are shown. `base` is the daemon's address."""

    def chat(key: str, text: str, **more: Any) -> DemoRequest:
        body = {"model": "gpt-5", **more, "messages": [{"role": "user", "content": text}]}
        return DemoRequest(f"{base}/v1/chat/completions", {"authorization": f"Bearer {key}"}, body)

    claude = DemoRequest(
        base + "/v1/messages",
        {"x-api-key": WEBSITE_KEY, "anthropic-version": "2023-06-01"},
        {
            "model": "claude-opus-4-6",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "The same address speaks Anthropic."}],
        },
    )
    return [
        Step(
            "plain",
            "A plain request",
            'The local key chooses the project "website": a customer\'s connection and a meter.',
            chat(WEBSITE_KEY, "Hello, Lava!"),
            200,
            _without_text,
            shows_token=True,
        ),
        Step(
            "stream",
            "A streamed answer",
            "Each piece is passed on as it arrives.",
            chat(WEBSITE_KEY, "Every word of this sentence comes back as an event of its own.", stream=True),
            200,
            _not_streamed,
        ),
        Step(
            "anthropic",
            "An Anthropic client",
            "Anthropic's and Google's SDKs use the same daemon, by its address without /v1.",
            claude,
            200,
            _without_text,
        ),
        Step(
            "unauthorized",
            "A clear 401",
            'The project "wrong-lava-key" has a secret key that Lava does not know.',
            chat(WRONG_KEY, "Hello?"),
            401,
            _without_code("lava_unauthorized"),
        ),
        Step(
            "payment-required",
            "A clear 402",
            'The wallet behind the connection of project "empty-wallet" is empty.',
            chat(EMPTY_KEY, "Hello?"),
            402,
            _without_code("lava_insufficient_balance"),
        ),
    ]


def _without_text(answer: DemoResponse) -> str:
    return "" if answer.answer_text else "the answer has no text"


def _not_streamed(answer: DemoResponse) -> str:
    if not answer.ended:
        return "the stream did not end with [DONE]"
    if answer.pieces < 2 or answer.seconds - answer.first_s < PACE_S:
        return "the answer did not come in pieces"
    return ""


def _without_code(code: str) -> Callable[[DemoResponse], str]:
    def wrong(answer: DemoResponse) -> str:
        found = answer.headers.get("x-lava-proxy-error")
        return "" if found == code and answer.error.get("message") else f"the error is not {code} but {found}"

    return wrong


def _perform(step: Step, number: int, screen: Screen | None, world: World, interrupt: _Interrupt) -> DemoOutcome:
    def on_text(piece: str) -> None:
        interrupt.check()
        if screen is not None:
            screen.write(piece)

    if screen is not None:
        screen.title(f"{number}  {step.title}")
        screen.line(step.why, "note", indent=3)
        screen.line(step.call.curl(), "code", indent=3)
        if step.call.streams:
            screen.write("   → ", "good")
    before = len(world.received)
    answer: DemoResponse | None = None
    try:
        answer = step.call.send(on_text)
    except (OSError, http.client.HTTPException) as error:
        fault = f"no whole answer came ({type(error).__name__})"
    else:
        fault = step.wrong(answer) if answer.status == step.status else f"expected {step.status}, got {answer.status}"
    # Beside the request itself, the daemon asks Lava's account (GET) why a request was refused.
    arrived = [each for each in world.received[before:] if each.method == "POST"]
    if not fault and len(arrived) != 1:
        fault = f"Lava received {counted(len(arrived), 'request')} instead of 1"
    last = arrived[-1] if arrived else None
    if not fault and step.status == 200 and last is not None and last.charged <= 0:
        fault = "no wallet was charged"
    token = payers.masked_fields(last.token) if last is not None and last.token is not None else None
    charged = sum((each.charged for each in arrived), start=_nothing())
    outcome = DemoOutcome(step, answer, fault, token, last.payer if last is not None else None, charged)
    if screen is not None:
        _show(screen, outcome)
    return outcome


def _nothing() -> Decimal:
    from decimal import Decimal

    return Decimal(0)


# --- output ----------------------------------------------------------------------------------------------------------


def _introduce(screen: Screen, base: str, lava: str) -> None:
    screen.line("lava-proxy demo", "title")
    screen.line(
        "The real daemon and an offline Lava, both on this machine. No account, no network, play money.", "note"
    )
    screen.line()
    screen.line(f"your tool  →  lava-proxy {base}  →  Lava, emulated {lava.rstrip('/')}", indent=3)


def _show(screen: Screen, outcome: DemoOutcome) -> None:
    step, answer = outcome.step, outcome.answer
    if step.call.streams:
        screen.line()
    if answer is not None:
        if answer.answer_text and not step.call.streams:
            screen.write("   → ", "good")
            screen.line(answer.answer_text)
        if answer.error:
            message = str(answer.error.get("message"))
            screen.prose(message, "good" if outcome.ok else "bad", lead=f"→ {answer.status}  ", indent=3)
            hint = str((answer.error.get("lava_proxy") or {}).get("hint") or "")
            if hint not in message:
                screen.prose(hint, indent=10)
    if not outcome.ok:
        screen.line(f"FAILED: {outcome.fault}", "bad", indent=3)
        return
    if answer is not None and step.status == 200:
        times = f", first piece after {answer.first_s * 1000:.0f} ms" if step.call.streams else ""
        screen.line(
            f"{answer.status} in {answer.seconds * 1000:.0f} ms{times}; charged ${outcome.charged:f} "
            f"to the {outcome.payer}",
            "note",
            indent=3,
        )
    if step.shows_token and outcome.token is not None:
        screen.line("The forward token that arrived at Lava, decoded, its key masked:", "note", indent=3)
        screen.line(json.dumps(outcome.token, indent=2, ensure_ascii=False), "code", indent=3)


def _balances(world: World) -> dict[str, Decimal]:
    wallets = {f"connection {name}": each.balance for name, each in world.connections.items()}
    return {**wallets, "merchant wallet": world.wallet_balance}


def _conclude(
    screen: Screen,
    outcomes: list[DemoOutcome],
    before: dict[str, Decimal],
    after: dict[str, Decimal],
    base: str,
    *,
    keep: bool,
) -> None:
    screen.title("What Lava charged, in dollars")
    rows = [[name, f"{before[name]:.6f}", f"{before[name] - left:.6f}", f"{left:.6f}"] for name, left in after.items()]
    screen.table(["wallet", "before", "charged", "left"], rows, indent=3)
    failed = [outcome.step.title for outcome in outcomes if not outcome.ok]
    if failed:
        screen.line()
        screen.line(f"The demo FAILED at: {', '.join(failed)}.", "bad")
    screen.title("Point your own tool here")
    screen.line(f"export OPENAI_BASE_URL={base}/v1\nexport OPENAI_API_KEY={WEBSITE_KEY}", "code", indent=3)
    screen.line()
    if keep:
        screen.line("Daemon and emulator are running; the commands above work. Ctrl-C ends them.", "good")
    else:
        port = "" if base == addresses.url("127.0.0.1", PORT) else f" --port {base.rpartition(':')[2]}"
        screen.line(f"The demo is over. These lines and commands work while this runs: lava-proxy demo --keep{port}")
        screen.line("With an account of your own: lava-proxy login, then lava-proxy serve")


def _document(
    outcomes: list[DemoOutcome], before: dict[str, Decimal], after: dict[str, Decimal], base: str, lava: str
) -> dict[str, Any]:
    return {
        "ok": all(outcome.ok for outcome in outcomes),
        "base_url": base,
        "lava": lava.rstrip("/"),
        "openai_base_url": f"{base}/v1",
        "local_key": WEBSITE_KEY,
        "steps": [_step_document(outcome) for outcome in outcomes],
        "balances": {
            name: {"before": f"{before[name]:f}", "charged": f"{before[name] - left:f}", "left": f"{left:f}"}
            for name, left in after.items()
        },
    }


def _step_document(outcome: DemoOutcome) -> dict[str, Any]:
    step, answer = outcome.step, outcome.answer
    return {
        "name": step.name,
        "ok": outcome.ok,
        "fault": outcome.fault or None,
        "command": step.call.curl(),
        "expected_status": step.status,
        "status": answer.status if answer is not None else None,
        "text": (answer.answer_text or None) if answer is not None else None,
        "pieces": answer.pieces if answer is not None and step.call.streams else None,
        "error": (answer.error or None) if answer is not None else None,
        "token": outcome.token,
        "payer": outcome.payer,
        "charged": f"{outcome.charged:f}",
    }
