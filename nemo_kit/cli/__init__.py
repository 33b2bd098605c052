"""The command ``nemo-kit``, one module a group of commands.

Scope: reads arguments, calls the package, prints. Whatever goes wrong ends with one line on
standard error and an exit code: 1 where a prompt or a figure failed, 2 for bad input, 130 for
Ctrl-C, 143 when it was ended by SIGTERM.
"""

import os
import signal
import sys
import warnings
from importlib import metadata
from typing import Annotated, Any, NoReturn

import typer

from nemo_kit.cli import calibrate, export, figures, method, methods
from nemo_kit.cli.options import grouped

app = typer.Typer(
    help="Find and switch off the neurons by which a diffusion model memorizes training images.",
    epilog="Start with: nemo-kit figures --list, or nemo-kit localize 'A PROMPT'. Exit codes: 0 "
    "done, 1 a prompt or figure failed, 2 bad input, 130 interrupted. "
    "NEMO_KIT_TRACEBACK=1 shows where an error came from.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        print("nemo-kit", metadata.version("nemo_kit"))
    elif context.invoked_subcommand is None:
        print(context.get_help())


for command, words in (
    (figures.figures, "Draw the figures of the paper."),
    (method.detect, "Tell which prompts a model memorizes."),
    (method.localize, "Find the neurons that memorize a prompt's image."),
    (calibrate.calibrate, "Give a model its threshold and statistics."),
    (export.export, "Write a model without these neurons, with a report."),
    (methods.methods, "List the methods that comparisons have."),
):
    app.command(short_help=words)(grouped(command))


def main() -> NoReturn:
    """Run ``nemo-kit``."""
    run(app)


def run(app: Any, name: str = "nemo-kit") -> NoReturn:
    """Run an app; bad input ends with exit code 2, a failed run with 1, each in one line."""
    warnings.formatwarning = lambda message, *_: f"{name}: {' '.join(str(message).split())}\n"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that notebooks are ended too
    try:
        code = app(standalone_mode=False, prog_name=name)
        if code == 130:  # newer typer's own for Ctrl-C
            _fail("interrupted", 130)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        bug = isinstance(error, (NotImplementedError, RecursionError))
        if bug or os.environ.get("NEMO_KIT_TRACEBACK"):
            raise
        # a sweep's: all prompts failed, or workers can't work
        told = " ".join(str(error).split()) or type(error).__name__
        _fail(told, 1 if isinstance(error, RuntimeError) else 2)
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own: unknown options, missing values
            raise
        _fail(_usage(error), 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"nemo-kit: {message}", file=sys.stderr)
    sys.exit(code)


def _usage(error: Any) -> str:
    """Typer's message, with what was typed where it doesn't say so, and where help is."""
    where = error.ctx.command_path if getattr(error, "ctx", None) else "nemo-kit"
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    return f"{message} ({where} --help shows what there is)"
