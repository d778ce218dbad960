"""The `tgate-export` command. Each command is one file; heavy imports happen inside them."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import click

from tgate_export import __version__
from tgate_export.cli._hints import on_command_line
from tgate_export.cli._interrupt import second_one_ends
from tgate_export.cli._lazy import lazy_group
from tgate_export.common.errors import TGateError, first_line, printable

# Command -> its help line, so that `--help` imports none of them.
COMMANDS = {
    "run": "Generate images with a model; builds what is not built.",
    "models": "List the models that build accepts by name.",
    "build": "Compile a diffusers pipeline into a bundle.",
    "lora": "Make a bundle with LoRA files in its weights, without a build.",
    "inspect": "Show what is in a bundle, without loading it.",
    "verify": "Prove a bundle against PyTorch.",
    "generate": "Generate images or videos with a bundle.",
    "serve": "Serve bundles over HTTP: two APIs and a page.",
    "bench": "Time bundles, gated and not.",
    "probe": "Find where cross-attention converges; suggest a gate step.",
    "embed": "Turn a bundle into a server or a program.",
    "cache": "Look after what builds keep for one another.",
}


@click.group(
    cls=lazy_group(COMMANDS, "tgate_export.cli."),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="tgate-export")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def cli(debug: bool) -> None:
    """Compile and run diffusion models with temporally gated attention (T-GATE).

    Start with: tgate-export run shapes --prompt "a red circle on a blue background".
    """
    del debug  # read by main(), which sees errors of every command


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: errors are one line, and exit 1 (failed) or 2 (wrong usage)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # A build that is told to stop cleans up as for Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with second_one_ends():
            code = cli.main(arguments, prog_name="tgate-export", standalone_mode=False) or 0
        sys.exit(code)
    except click.Abort:
        _fail("interrupted", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except TGateError as error:
        if "--debug" in arguments:
            raise
        _fail(error.worded(on_command_line), error.exit_code)
    except Exception as error:
        if "--debug" in arguments:
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        _fail(f"{reason} (run with --debug for the traceback)", 1)


def _fail(message: str, code: int) -> Any:
    click.echo(f"error: {printable(' '.join(message.splitlines()))}", err=True)
    sys.exit(code)
