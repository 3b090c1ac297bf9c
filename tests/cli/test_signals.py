"""Signals that arrive where Python drops what their handler raises."""

import signal
import subprocess
import sys

import pytest

IN_A_CALLBACK = """
import gc, os, time
from geopol_tkg.cli._signals import StopSignals, exit_on_signals

exit_on_signals()
{more}

def callback(phase, _):
    if phase == "start":
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), {number})
        for _ in range(1000):  # the handler runs here, and what it raises is dropped
            pass

gc.callbacks.append(callback)
try:
    gc.collect()
    time.sleep(20)
finally:
    print("cleaned up")
"""


def run_in_a_callback(number, more=""):
    program = [sys.executable, "-c", IN_A_CALLBACK.format(number=int(number), more=more)]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("number", "codes"), [(signal.SIGTERM, {143}), (signal.SIGINT, {130, -signal.SIGINT})])
def test_a_signal_in_a_callback_of_the_garbage_collection_ends_the_program(number, codes):
    done = run_in_a_callback(number)
    assert done.returncode in codes, done.stderr
    assert done.stdout == "cleaned up\n"
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_signal_that_is_sent_again_is_the_one_that_came(number):
    assert run_in_a_callback(number, "StopSignals(at_once=True).__enter__()").returncode == -number


def test_background_jobs_of_scripts_heed_sigint():
    lines = (
        "import os, signal, time",
        "from geopol_tkg.cli._signals import exit_on_signals",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",  # as a shell starts them
        "exit_on_signals()",
        "os.kill(os.getpid(), signal.SIGINT)",
        "time.sleep(20)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, timeout=60, check=False)
    assert done.returncode in {130, -signal.SIGINT}
