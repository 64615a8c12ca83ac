"""The path that loses packets loses as many as it is told, and TCP does not mind."""

from __future__ import annotations

import socket
import threading

import pytest

from .lossy_path import FAR, NEAR, LossyPath, can_be_made

pytestmark = pytest.mark.skipif(not can_be_made(), reason="making a network interface needs root")


def sent_over(path: LossyPath, data: bytes) -> bytes:
    """What arrives at NEAR of what was sent to FAR."""
    received = bytearray()
    with socket.create_server((NEAR, 0)) as listener:

        def receive() -> None:
            connection, peer = listener.accept()
            assert peer[0] == FAR
            with connection:
                while piece := connection.recv(65536):
                    received.extend(piece)

        thread = threading.Thread(target=receive)
        thread.start()
        with socket.create_connection((FAR, listener.getsockname()[1]), timeout=30.0) as connection:
            connection.sendall(data)
        thread.join()
    return bytes(received)


def test_without_loss_every_packet_passes() -> None:
    data = bytes(range(256)) * 2000
    with LossyPath(0.0) as path:
        assert sent_over(path, data) == data
        assert path.lost == 0
        assert path.passed > len(data) // 1500


@pytest.mark.statistical
def test_a_share_of_the_packets_is_lost_and_the_data_arrive() -> None:
    """Losses are binomial: beyond five standard deviations with probability 6e-7."""
    data = bytes(range(256)) * 8000
    with LossyPath(0.05) as path:
        assert sent_over(path, data) == data
        packets = path.passed + path.lost
        assert abs(path.lost - 0.05 * packets) < 5 * (0.05 * 0.95 * packets) ** 0.5
