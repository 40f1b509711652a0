"""No test of this project reaches a network, whatever a defect or the environment would have it do.

Not by patching an HTTP library: a client that changes its library would then go through.
"""

import ipaddress
import socket

import pytest


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost,::1")
    for method in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, method, _guarded(getattr(socket.socket, method)))


def _guarded(connect):
    def guarded(self, address):
        if self.family != socket.AF_UNIX and not ipaddress.ip_address(address[0]).is_loopback:
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    return guarded
