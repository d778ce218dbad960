"""Nested phases as one fraction, and signals that wait."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tgate_export.compile.monitor import PhaseTree, deferred_signals


def test_fraction_counts_inner_phases_as_part_of_a_step() -> None:
    tree = PhaseTree()
    assert tree.fraction() == 0
    tree.start("build", None, 4)
    tree.step("build", 1)
    assert tree.fraction() == 1 / 4
    tree.start("optimize", "build", 2)
    tree.step("optimize", 1)
    assert tree.fraction() == 1 / 4 + 1 / 4 / 2
    tree.finish("optimize")
    tree.step("build", 2)
    assert tree.fraction() == 2 / 4


def test_fraction_never_falls() -> None:
    tree = PhaseTree()
    tree.start("build", None, 2)
    tree.step("build", 1)
    assert tree.fraction() == 1 / 2
    tree.finish("build")
    tree.start("build", None, 10)
    assert tree.fraction() == 1 / 2


def test_interrupt_waits_for_the_end_of_the_block(ctrl_c: None) -> None:
    seen = []

    def interrupted_work() -> None:
        with deferred_signals() as stopped:
            seen.append(stopped())
            os.kill(os.getpid(), signal.SIGINT)
            seen.append(stopped())

    with pytest.raises(KeyboardInterrupt):
        interrupted_work()
    assert seen == [False, True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_signals() as stopped:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stopped()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_signals() -> None:
    seen = []

    def work() -> None:
        with deferred_signals() as stopped:
            seen.append(stopped())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
