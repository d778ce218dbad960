"""Find the smallest recurrence that reproduces a scheduler's run: see `bundle.sampler_table`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tgate_export.bundle.sampler_table import (
    HISTORY,
    INPUT_SCALE,
    NOISE,
    NOISE_PRED,
    NUM_WEIGHTS,
    PAST,
    PUSH_NOISE_PRED,
    PUSH_SAMPLE,
    SAMPLE,
)
from tgate_export.samplers.probe import Array, Trace

FIT_TOLERANCE = 1e-6  # relative to the largest coefficient of the step's sample
_NEGLIGIBLE = 1e-10  # contributions below are rounding of 64-bit floats
_SAME = 1e-7  # diffusers rounds to 32 bits: differences below are none
_RANK_TOLERANCE = 1e-7  # vectors closer than 32-bit rounding are the same vector


def fit_recurrence(trace: Trace, slots: int, *, push_stored: bool) -> Array | None:
    """Solve for the weights of every step.

    Args:
        trace: the scheduler's run, N evaluations.
        slots: how many past entries a step may use, 0 to HISTORY.
        push_stored: whether past entries are what the scheduler itself keeps (say, x0 predictions)
            or model outputs. An entry that no step uses as such may become any other combination of
            its sample and model output that a later step needs.

    Returns:
        Weights [N, NUM_WEIGHTS], or None when this form does not reproduce the run.
    """
    n = len(trace.local)
    push = trace.stored.copy() if push_stored else np.tile([0.0, 1.0], (n, 1))
    weights = np.zeros((n, NUM_WEIGHTS))
    weights[:, NOISE] = trace.noise
    weights[:, INPUT_SCALE] = np.append(trace.input_scales[1:], 1.0)
    direct = _read_off(trace.local, push, slots, weights)
    used = np.zeros(n, dtype=bool)
    for h, column in enumerate(weights[direct, PAST].T):
        used[np.flatnonzero(direct)[column != 0] - 1 - h] = True

    if not direct.all():
        samples = _compose(trace.local, trace.noise)
        outputs = np.eye(n + 1, samples.shape[1])[1:]
        for j in np.flatnonzero(~direct).tolist():
            if not _solve_step(j, samples, outputs, push, used, slots, weights):
                return None
    weights[used, PUSH_SAMPLE : PUSH_NOISE_PRED + 1] = push[used]
    return weights


def _read_off(local: Array, push: Array, slots: int, weights: Array) -> NDArray[np.bool_]:
    """Fill in the weights of steps that use past entries just as they were pushed.

    Returns:
        [N], which steps those are.
    """
    n = len(local)
    weights[:, SAMPLE] = np.diagonal(local[:, 0])
    weights[:, NOISE_PRED] = np.diagonal(local[:, 1])
    unexplained = local.copy()
    unexplained[np.arange(n), :, np.arange(n)] = 0.0
    for h in range(min(slots, n - 1)):
        after, entry = np.arange(h + 1, n), np.arange(n - 1 - h)
        taken, pushed = local[after, :, entry], push[entry]
        factor = (taken * pushed).sum(axis=1) / (pushed**2).sum(axis=1)
        factor[np.abs(factor) <= _NEGLIGIBLE] = 0.0
        weights[after, 2 + h] = factor
        unexplained[after, :, entry] -= factor[:, None] * pushed
    direct = np.abs(unexplained).max(axis=(1, 2)) <= _SAME * np.abs(local).max(axis=(1, 2))
    weights[~direct, : PAST.stop] = 0.0
    return direct


def _solve_step(
    j: int,
    samples: Array,
    outputs: Array,
    push: Array,
    used: NDArray[np.bool_],
    slots: int,
    weights: Array,
) -> bool:
    """Solve for the weights of evaluation j; may change what an unused entry holds.

    A step that goes back to an earlier sample, or further back than `slots`, can still be a
    combination of what there is: PNDM's second evaluation redoes its first step.
    """
    target = samples[j + 1].copy()
    target[len(samples) + j :][:1] = 0.0  # noise of its own
    past = [j - 1 - h for h in range(min(slots, j))]
    entries = [push[i] @ (samples[i], outputs[i]) for i in past]
    current = [samples[j], outputs[j]]
    solution = _solve([*current, *entries], target)
    if solution is None:
        for slot in (h for h in reversed(range(len(past))) if not used[past[h]]):
            i = past[slot]
            others = entries[:slot] + entries[slot + 1 :]
            wider = _solve([*current, *others, samples[i], outputs[i]], target)
            if wider is not None:
                push[i] = wider[-2:] / np.abs(wider[-2:]).max()
                entries[slot] = push[i] @ (samples[i], outputs[i])
                solution = _solve([*current, *entries], target)
                break
    if solution is None:
        return False
    weights[j, [SAMPLE, NOISE_PRED]] = solution[:2]
    weights[j, PAST][: len(past)] = solution[2:]
    used[[i for i, weight in zip(past, solution[2:], strict=True) if weight]] = True
    return True


def forms() -> list[tuple[int, bool]]:
    """Return (slots, push_stored) of every form, the smallest first."""
    return [(0, False)] + [(h, stored) for h in range(1, HISTORY + 1) for stored in (True, False)]


def _compose(local: Array, noise: Array) -> Array:
    """Chain single steps to samples over the first sample, all model outputs and their noises.

    Returns:
        [N + 1, 1 + N], or [N + 1, 1 + 2 N] of a scheduler that draws noise.
    """
    n = len(local)
    samples = np.zeros((n + 1, 1 + n + (n if noise.any() else 0)))
    samples[0, 0] = 1.0
    for i in range(n):
        samples[i + 1] = local[i, 0] @ samples[:-1]
        samples[i + 1, 1 : n + 1] += local[i, 1]
        samples[i + 1, n + 1 + i :][:1] += noise[i]
    return samples


def _solve(vectors: list[Array], target: Array) -> Array | None:
    """Return coefficients with which `vectors` add up to `target`, None if there are none."""
    matrix = np.stack(vectors, axis=1)
    norms = np.linalg.norm(matrix, axis=0)
    norms[norms == 0] = 1.0
    scaled = np.linalg.lstsq(matrix / norms, target, rcond=_RANK_TOLERANCE)[0]
    scaled[np.abs(scaled) <= _NEGLIGIBLE * np.linalg.norm(target)] = 0.0
    solution = scaled / norms
    error = np.abs(matrix @ solution - target).max()
    return solution if error <= FIT_TOLERANCE * np.abs(target).max() else None
