"""What runs graphs. `select` picks one of the backends that the modules of this folder specify.

A module with `SPECS`, a tuple of `BackendSpec`, is a backend; nothing else has to know of it.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.plans import plan_sets
from tgate_export.common.errors import InvalidRequestError
from tgate_export.common.hints import Argument, Call
from tgate_export.common.install import pip_install
from tgate_export.runtime.backends.base import Backend, BackendError, BackendOptions
from tgate_export.runtime.backends.cuda import has_driver
from tgate_export.runtime.backends.spec import BackendSpec
from tgate_export.runtime.rebuild import rebuild

AUTO = "auto"


@cache
def specs() -> Mapping[str, BackendSpec]:
    """Return every backend by name: those that `auto` tries in its order, then the others."""
    found: list[BackendSpec] = []
    for module in pkgutil.iter_modules(__path__):
        found += getattr(importlib.import_module(f"{__name__}.{module.name}"), "SPECS", ())
    found.sort(key=lambda spec: (spec.auto is None, spec.auto or 0))
    return {spec.name: spec for spec in found}


def names() -> tuple[str, ...]:
    """Return every name that `select` takes."""
    return (AUTO, *specs())


def select(name: str, bundle: Bundle, options: BackendOptions | None = None) -> Backend:
    """Return the backend of that name, ready to load the bundle's graphs.

    `auto` is the fastest that works here, of those that can compute in the precision that is asked
    for, if one is. Backends that compile for minutes on their first run are used only when named.

    Raises:
        InvalidRequestError: an unknown name, or an option that is not for that backend.
        BackendError: the backend cannot be used on this machine.
    """
    check_backend(name)
    options = options or BackendOptions()
    if name == AUTO:
        return _fastest(bundle, options)
    spec = specs()[name]
    _check_options(spec, options)
    return _make(spec, bundle, options, ", or use ", Argument("backend", AUTO))


def check_backend(name: str) -> None:
    """Refuse a name that is no backend.

    Raises:
        InvalidRequestError: names those that may have been meant, and all.
    """
    known, typed = names(), name.lower()
    if name in known:
        return
    near = [
        spec.name
        for spec in specs().values()
        if (typed and typed in spec.name.partition(":")[::2])
        or (typed == spec.device and spec.auto is not None)
    ]
    near = near or difflib.get_close_matches(typed, known, n=2)
    meant = f"did you mean {' or '.join(near)}? There are" if near else "choose one of"
    raise InvalidRequestError(f"unknown backend {name!r}: {meant} {', '.join(known)}")


def _check_options(spec: BackendSpec, options: BackendOptions) -> None:
    """Refuse an option that was given and is not for this backend, or not with that value."""
    for option, value in options.given().items():
        if not spec.takes(option, value):
            *most, last = [AUTO, *(n for n, known in specs().items() if known.takes(option, value))]
            # A number says nothing that the name does not.
            named = Argument(option, value if isinstance(value, (str, bool)) else None)
            raise InvalidRequestError(
                f"{spec.name} does not take {option} {value}",
                named,
                f" is for {', '.join(most)} and {last}" if most else f" is for {last}",
            )


def _make(
    spec: BackendSpec, bundle: Bundle, options: BackendOptions, *otherwise: str | Call
) -> Backend:
    """Check that a backend can be used here, and make it.

    Args:
        spec: of the backend.
        bundle: what it is to run.
        options: that it takes.
        otherwise: what else helps, for the hint.

    Raises:
        BackendError: it cannot.
    """
    if spec.plans is not None and spec.plans not in _libraries(bundle):
        raise BackendError(
            f"{bundle.path} has no {spec.plans} plans",
            "make them with `", rebuild(bundle, {"library": spec.plans}), "`", *otherwise,
        )  # fmt: skip
    try:
        importlib.import_module(spec.module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == spec.module
        reason = "is not installed" if missing else f"cannot be imported ({error})"
        install = ", or ".join(pip_install(extra) for extra in spec.extras)
        raise BackendError(f"{spec.module} {reason}", install, *otherwise) from None
    spec.check()
    return spec.make(bundle, options)


def _libraries(bundle: Bundle) -> set[str]:
    return {plans.key.library for plans in plan_sets(bundle.path)}


def _fastest(bundle: Bundle, options: BackendOptions) -> Backend:
    """Try every backend that the bundle can use, fastest first; the last one's error is raised."""
    passed = []
    candidates = list(_candidates(bundle, options))
    for name, make in candidates:
        try:
            backend = make()
        except BackendError as error:
            if name == candidates[-1][0]:
                raise
            passed.append(f"{name}: {error.message}")
        else:
            break
    backend.reason = "the fastest that works here"
    if passed:
        backend.reason += f" ({'; '.join(passed)})"
    return backend


def _candidates(
    bundle: Bundle, options: BackendOptions
) -> Iterator[tuple[str, Callable[[], Backend]]]:
    built = _libraries(bundle)
    # Elsewhere nobody waits for a GPU, and needs not hear of it.
    gpu = bool(built) or has_driver()
    for spec in specs().values():
        if spec.auto is None:
            continue
        # It changes the pictures; the other options are for whatever takes them.
        if options.precision is not None and not spec.takes("precision", options.precision):
            continue
        if spec.plans in built if spec.plans else gpu or spec.device != "gpu":
            yield spec.name, partial(_make, spec, bundle, options)
