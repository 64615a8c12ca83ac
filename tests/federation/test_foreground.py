"""A verb as a service: SIGTERM early and late, Ctrl-C, lines, signs of life. The signals are real."""

from __future__ import annotations

import io
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.foreground import foreground

from .manager_socket import manager_socket
from .signals import SendSoon, harmless_signals

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ "


@pytest.fixture(autouse=True)
def send() -> Iterator[SendSoon]:
    """Sends a signal to this process while the main thread is at work."""
    with harmless_signals() as send_soon:
        yield send_soon


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_service_that_is_up_in_order(
    number: signal.Signals, send: SendSoon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with manager_socket(tmp_path) as systemd:
        with foreground({"NOTIFY_SOCKET": systemd.name}) as service:
            service.ready("serving")
            assert not service.wait(0.0)
            send(number)
            assert service.wait(30.0)
            os.kill(os.getpid(), number)  # a second one, while it ends
        assert systemd.receive() == {"READY": "1", "STATUS": "serving"}
        assert systemd.receive()["STOPPING"] == "1"
    assert re.fullmatch(f"{STAMP}serving\n{STAMP}stopped\n", capsys.readouterr().out)
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


def test_sigterm_while_it_starts_ends_it_in_order_too(
    send: SendSoon, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned_up = False
    with foreground({}) as service:
        service.starting("starting", seconds=60)
        try:
            send(signal.SIGTERM)
            time.sleep(30.0)
            pytest.fail("it was not interrupted")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # does not tear the cleaning up
            cleaned_up = True
    assert cleaned_up
    assert capsys.readouterr().out.endswith("stopped\n")


def test_ctrl_c_while_it_starts_interrupts_the_start(send: SendSoon) -> None:
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), foreground({}):
        time.sleep(30.0)


def test_a_failure_is_not_called_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), foreground({}):
        raise ValueError("broken")
    assert "stopped" not in capsys.readouterr().out


def test_an_event_is_one_printable_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    with foreground({"JOURNAL_STREAM": "8:1"}) as service:
        service.say("st-mary refused: \x1b[31mtwo\nlines\u202e")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["st-mary refused:  [31mtwo lines ", "stopped"]  # the journal has its own clock


def test_a_log_on_a_full_disk_does_not_end_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    with foreground({}) as service, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", Full())
        service.say("something")


def test_signs_of_life_go_on_during_long_work_but_not_for_ever(tmp_path: Path) -> None:
    with manager_socket(tmp_path) as systemd:
        environment = {"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "1000"}
        with foreground(environment) as service:
            service.ready("serving")
            systemd.receive()
            with service.busy(60.0):
                assert systemd.receive() == {"WATCHDOG": "1"}
            systemd.is_empty()  # takes away what came meanwhile
            with service.busy(0.0):
                time.sleep(1.0)
                assert systemd.is_empty()
