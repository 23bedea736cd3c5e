"""The `vid3d` command. Each command parses its arguments, calls the library and prints; it has a file of its own.

Only this file turns errors into messages and exit codes; `errors` lists the codes.
"""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from .. import __version__
from ..errors import EXIT_INTERRUPTED, EXIT_SOME_FAILED, EXIT_TERMINATED, EXIT_USAGE, Vid3dError
from . import bench, classify, demo, doctor, evaluate, extract, features, flow, models, presets, probe, verify, weights
from .command import App, Group, ParserError, describe_parser_error
from .console import log, set_verbosity
from .help import HELP_ALL

_EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells report it
_ANYWHERE = re.compile(r"-[vq]+|--verbose|--quiet|--debug|--log-json")


class _Terminated(KeyboardInterrupt):
    """SIGTERM arrived, as when a cluster takes its machine back, or SIGHUP, as when a terminal is closed."""


class _Root(Group):
    """Accepts the global flags at any position and turns exceptions into messages and exit codes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = args[: args.index("--")] if "--" in args else args
        flags = [arg for arg in own if _ANYWHERE.fullmatch(arg)]
        rest = [arg for arg in own if not _ANYWHERE.fullmatch(arg)]
        set_verbosity(verbose=False, quiet=False, as_json="--log-json" in flags)
        rest[:1] = ["--help"] if rest[:1] == ["help"] else rest[:1]
        try:
            return super().parse_args(ctx, flags + rest + args[len(own) :])
        except ParserError as error:
            raise _end(describe_parser_error(error), EXIT_USAGE) from None
        except OSError as error:
            advice = "add the output of 'vid3d --show-completion' to a startup file of your shell"
            raise _end(f"{error.filename}: cannot be written: {error.strerror}; {advice}", EXIT_SOME_FAILED) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ParserError as error:
            raise _end(describe_parser_error(error), EXIT_USAGE) from None
        except Vid3dError as error:
            if ctx.params.get("debug"):
                log.debug("traceback:", exc_info=True)
            raise _end(error, error.exit_code) from None
        except KeyboardInterrupt as interrupt:
            is_terminated = isinstance(interrupt, _Terminated)
            kept = "; finished results are kept" if ctx.invoked_subcommand in ("classify", "features") else ""
            log.error("%s%s", f"terminated ({interrupt})" if is_terminated else "interrupted", kept)
            raise typer.Exit(EXIT_TERMINATED if is_terminated else EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of stdout closed it. Without this, Python would fail again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_EXIT_BROKEN_PIPE) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            raise _end(f"the results cannot be written: {error.strerror}", EXIT_SOME_FAILED) from None


def _end(message: object, code: int) -> typer.Exit:
    log.error("%s", message)
    return typer.Exit(code)


_CODES = "Exit codes: 0 all done, 1 some videos failed, 2 usage, 3 weights, 130 interrupted, 143 terminated."

app = App(
    name="vid3d",
    cls=_Root,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help", HELP_ALL]},
    epilog=_CODES,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vid3d {__version__}")
        raise typer.Exit


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more messages to stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors; no progress bar.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Print messages to stderr as JSON lines: failures, progress, a summary.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Recognise actions in video, or extract clip features, with two-stream 3D CNNs.

    Results go to stdout, everything else to stderr.

    Example: vid3d classify video.mp4
    """
    set_verbosity(verbose or debug, quiet and not debug, log_json)


app.command("demo")(demo.demo)
app.command("classify", epilog=_CODES)(classify.classify)
app.command("extract", epilog=_CODES)(extract.extract)
app.command("eval", epilog=_CODES)(evaluate.evaluate)
app.command("verify", epilog=_CODES)(verify.verify)
app.command("flow")(flow.flow)
app.command("probe")(probe.probe)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.add_typer(features.app, name="features")
app.add_typer(models.app, name="models")
app.add_typer(presets.app, name="presets")
app.add_typer(weights.app, name="weights")


def main() -> None:
    """Run the command line; report an unexpected exception as a bug."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115  (the caller may have closed it)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # file names need not be UTF-8
    arrived = _watch_signals()
    try:
        app(prog_name="vid3d")
    except SystemExit as ended:
        if ended.code in (EXIT_INTERRUPTED, EXIT_TERMINATED):  # Typer knows only the first of the two
            _leave_at_once(EXIT_TERMINATED if set(arrived) - {signal.SIGINT} else EXIT_INTERRUPTED)
        raise
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        log.error("internal error: %s: %s", type(error).__name__, error)
        log.error(
            "this is a bug in vid3d: run the command again with --debug, and report the traceback and the output of "
            "vid3d doctor --format json"
        )
        sys.exit(EXIT_SOME_FAILED)


def _watch_signals() -> list[int]:
    """Make the first Ctrl-C, SIGTERM or SIGHUP end the work cleanly, and a second one end it at once.

    A signal that is ignored stays so: nohup ignores SIGHUP; cron and shells ignore SIGINT in the background.

    Returns:
        The signals received; the list grows as they arrive.
    """
    codes = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED, signal.SIGHUP: EXIT_TERMINATED}
    arrived: list[int] = []
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def interrupt(number: int, frame: Any) -> NoReturn:
        arrived.append(number)
        if number == signal.SIGHUP:  # the terminal is gone, and writing to it would fail
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it may come from the shell too
            for descriptor in terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        if len(arrived) > 1:
            os.write(2, b"vid3d: stopped at once; committed results are kept\n")
            _leave_at_once(codes[signal.Signals(number)])
        raise KeyboardInterrupt if number == signal.SIGINT else _Terminated(signal.Signals(number).name)

    for number in codes:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    return arrived


def _leave_at_once(code: int) -> NoReturn:
    """End the process without waiting for threads: one may hang inside a decoder or a network."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # its reader may be gone
            stream.flush()
    os._exit(code)
