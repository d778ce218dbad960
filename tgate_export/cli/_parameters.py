"""Options of the parameters of a run, from their declarations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tgate_export.cli._types import SchedulerName
from tgate_export.common.errors import InvalidRequestError
from tgate_export.parameters import PARAMETERS, Declared, Parameter, short_name

if TYPE_CHECKING:
    from tgate_export.bundle.manifest import Manifest
    from tgate_export.runtime.picture_record import PictureRecord
    from tgate_export.runtime.request import Request

F = TypeVar("F", bound=Callable[..., Any])


class _Pair(click.ParamType):
    name = "pair"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        try:
            first, second = (int(side) for side in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not two whole numbers with a comma between", param, ctx)
        return first, second


def parameter_options(function: F) -> F:
    """Give a command an option for every declared parameter, and one for those of a bundle."""
    options = [_option(name, entry) for name, entry in PARAMETERS.items()]
    further = click.option(
        "--set", "further", multiple=True, metavar="NAME=VALUE",
        help="Another parameter that the bundle has; `inspect` lists them.",
    )  # fmt: skip
    for decorate in reversed([*options, further]):
        function = decorate(function)
    return function


def _option(name: str, entry: Declared) -> Callable[[F], F]:
    kinds: dict[str, Any] = {
        "integer": int, "number": float, "pair": _Pair(),
        "choice": click.Choice(entry.choices) if entry.choices else SchedulerName(),
        "image": click.Path(path_type=Path),
    }  # fmt: skip
    flag = f"--{short_name(name).replace('_', '-')}"
    metavar = "A,B" if entry.type == "pair" else None
    return click.option(flag, name, type=kinds[entry.type], help=_help(entry), metavar=metavar)


def _help(entry: Declared) -> str:
    default = entry.default
    if default is None or entry.type == "pair":
        return entry.help
    return f"{entry.help} Default: {default:g}." if isinstance(default, int | float) else entry.help


def check_declared(values: Mapping[str, Any]) -> None:
    """Refuse values that no bundle takes, before there is one.

    Args:
        values: by name; others than those of parameters are left alone.

    Raises:
        InvalidRequestError: names the parameter and what it may be.
    """
    for name, entry in PARAMETERS.items():
        value = values.get(name)
        if value is None or (entry.type == "choice" and not entry.choices):  # the bundle has them
            continue
        if fault := entry.fault(value):
            raise InvalidRequestError(f"{short_name(name)} {fault}", field=name)


def further_parameters(manifest: Manifest, further: Iterable[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` by the bundle's table.

    Raises:
        InvalidRequestError: no such parameter, or a value that it cannot be.
    """
    found = {}
    for setting in further:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InvalidRequestError(f"--set {setting} has no value: give NAME=VALUE")
        if name not in manifest.parameters:
            raise InvalidRequestError(
                f"--set {name}: this bundle has {', '.join(manifest.parameters)}"
            )
        found[name] = _parsed(name, manifest.parameters[name], text)
    return found


def recorded(
    manifest: Manifest,
    record: PictureRecord,
    given: Mapping[str, Any],
    further: Mapping[str, Any],
    file: Path,
) -> dict[str, Any]:
    """Return the parameters that a picture was made with and that a call does not change.

    Args:
        manifest: of the bundle that makes it again.
        record: how it was made.
        given: the call's declared parameters; None for one that is not given.
        further: its other ones, which are returned as well.
        file: the picture's.

    Raises:
        InvalidRequestError: the bundle lacks a parameter, or a picture has to be given again.
    """
    changed = {name for name, value in given.items() if value is not None} | further.keys()
    for name in record.pictures:
        if name not in changed:
            raise InvalidRequestError(
                f"{file} was made from a picture that it does not hold: give it as {name} again",
                field=name,
            )
    values = {n: value for n, value in record.parameters.items() if n not in changed}
    for name in sorted(values.keys() - manifest.parameters.keys()):
        raise InvalidRequestError(
            f"{file} was made by the bundle {record.model!r} with {name} {values[name]}, which "
            f"{manifest.name!r} lacks",
            field=name,
        )
    return {**values, **further}


def _parsed(name: str, entry: Parameter, text: str) -> Any:
    try:
        if entry.type == "pair":
            first, second = (int(side) for side in text.split(","))
            return first, second
        kinds: dict[str, Callable[[str], Any]] = {"integer": int, "number": float, "image": Path}
        return kinds.get(entry.type, str)(text)
    except ValueError:
        raise InvalidRequestError(
            f"--set {name}: {text!r} is not of the type {entry.type}"
        ) from None


def reported(manifest: Manifest, request: Request) -> dict[str, Any]:
    """Return what a request's parameters are, by their short names, for JSON."""
    return {
        short_name(name): request.value(name)
        for name, entry in manifest.parameters.items()
        if entry.type != "image"
    }
