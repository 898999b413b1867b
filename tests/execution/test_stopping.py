"""How a command is asked to end: small programs in a terminal of their own, without torch and Ray."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time

import pytest

from edm_ray.execution import stopping
from tests.terminal import Terminal

AT_ONCE_S = 4.0
"""Of work that would take a minute: a busy machine takes a second to run a process at all."""
FRONT = """
import hashlib, os, signal, sys, time
from edm_ray.cli.console import forget_terminal
from edm_ray.execution import stopping

class Front:
    def asked(self, number, saves):
        if number == signal.SIGHUP: forget_terminal()
        print("asked saves" if saves else "asked ends", flush=True)
    def still(self, seconds): print("still", flush=True)
    def leave(self, number, begun=True): print(f"left {begun}", flush=True); os._exit(128 + number)

def in_c(seconds):
    "Without the interpreter's lock, and deaf to signals."
    end = time.monotonic() + seconds
    one = time.monotonic(); hashlib.pbkdf2_hmac("sha256", b"a", b"b", 100_000); one = time.monotonic() - one
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", int(100_000 * seconds / one))

def begun(): print("begun", flush=True)

def main():
    try:
        with stopping.heard(Front()):
            work()
    except stopping.Interrupted as interrupted:
        print("ended", flush=True)
        sys.exit(interrupted.code)
    print("done", flush=True)
"""


def program(work: str, before: str = "") -> Terminal:
    lines = "\n".join(["def work():", textwrap.indent(textwrap.dedent(work), "    ")])
    return Terminal(program=(sys.executable, "-c", f"{FRONT}\n{lines}\n{before}\nmain()"))


@pytest.mark.parametrize(("how", "code"), [("key", 130), ("kill", 143), ("close", 129)])
def test_each_way_to_ask_ends_the_work_with_its_code(how, code):
    with program("begun(); time.sleep(60)") as terminal:
        terminal.until("begun", 20)
        getattr(terminal, how)()
        assert terminal.wait(20) == code
        if how != "close":
            assert "asked ends" in terminal.text and "ended" in terminal.text and "done" not in terminal.text


def test_it_is_said_at_once_and_a_main_thread_that_does_not_come_back_from_c_code_is_left():
    with program("begun(); in_c(60)", "stopping.GRACE_S = 0.5") as terminal:
        terminal.until("begun", 20)
        time.sleep(1)
        pressed = terminal.key()
        assert terminal.until("asked", 20) - pressed < AT_ONCE_S
        assert terminal.wait(20) == 130 and "left True" in terminal.text


SAVES = """
with stopping.saving() as asked:
    begun()
    while not asked():
        time.sleep(0.01)
    time.sleep({seconds})
    print("saved", flush=True)
"""


def test_work_that_saves_is_waited_for_however_long_and_says_that_it_does():
    with program(SAVES.format(seconds=1.2), "stopping.GRACE_S, stopping.REMIND_S = 0.3, 0.5") as terminal:
        terminal.until("begun", 20)
        terminal.key()
        assert terminal.wait(20) == 130
        assert all(word in terminal.text for word in ("asked saves", "still", "saved", "ended"))


def test_the_second_request_leaves_at_once_also_work_that_saves():
    with program(SAVES.format(seconds=60)) as terminal:
        terminal.until("begun", 20)
        terminal.key()
        terminal.until("asked", 20)
        terminal.watch(0.5)
        pressed = terminal.key()
        assert terminal.wait(20) == 130 and terminal.now - pressed < AT_ONCE_S and "saved" not in terminal.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_sent_twice_in_a_moment_is_one_request(number):
    """`timeout` sends SIGTERM to the command and to its group; a terminal that closes sends SIGHUP twice."""
    with program(SAVES.format(seconds=0.5)) as terminal:
        terminal.until("begun", 20)
        terminal.kill(number)
        terminal.until("asked", 20)
        terminal.kill(number)
        assert terminal.wait(20) == 128 + number and "saved" in terminal.text


def test_what_has_nothing_to_save_yet_is_not_waited_for():
    work = SAVES.replace("saving()", "saving(lambda: False)").format(seconds=60)
    with program(work) as terminal:
        terminal.until("begun", 20)
        terminal.key()
        assert terminal.wait(20) == 130 and "asked ends" in terminal.text


def test_a_command_that_has_begun_nothing_is_left_without_an_exception():
    """Libraries swallow exceptions while they are imported."""
    work = """
    with stopping.nothing_begun():
        while True:
            try:
                begun(); time.sleep(60)
            except BaseException:
                print("swallowed", flush=True)
    """
    with program(work) as terminal:
        terminal.until("begun", 20)
        terminal.key()
        assert terminal.wait(20) == 130 and "left False" in terminal.text and "swallowed" not in terminal.text


def test_a_request_that_was_swallowed_is_raised_again_at_the_next_check():
    work = """
    try:
        begun(); time.sleep(60)
    except BaseException:
        print("swallowed", flush=True)
    stopping.check()
    print("went on", flush=True)
    """
    with program(work) as terminal:
        terminal.until("begun", 20)
        terminal.key()
        assert terminal.wait(20) == 130 and "swallowed" in terminal.text and "went on" not in terminal.text


def test_a_plain_keyboard_interrupt_that_a_library_raises_in_its_place_keeps_the_code():
    work = """
    try:
        begun(); time.sleep(60)
    except KeyboardInterrupt:
        raise KeyboardInterrupt
    """
    with program(work) as terminal:
        terminal.until("begun", 20)
        terminal.kill()
        assert terminal.wait(20) == 143


def test_signals_that_are_ignored_stay_ignored():
    """`nohup edm-ray train ...`"""
    with program("begun(); time.sleep(0.5)", "signal.signal(signal.SIGHUP, signal.SIG_IGN)") as terminal:
        terminal.until("begun", 20)
        terminal.kill(signal.SIGHUP)
        assert terminal.wait(20) == 0 and "done" in terminal.text and "asked" not in terminal.text


@pytest.fixture
def hears_ctrl_c():
    """Tests that run in the background of a script are born deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_in_a_program_of_one_s_own_the_first_signal_is_told_to_the_work_and_the_second_interrupts_it():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(stopping.Interrupted), stopping.saving() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        os.kill(os.getpid(), signal.SIGINT)  # so soon after the first one it is the same request
        signal.sigtimedwait([], 0.2)
        os.kill(os.getpid(), signal.SIGINT)
        signal.sigtimedwait([], 1.0)
        pytest.fail("not interrupted")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert stopping.asked() is None
