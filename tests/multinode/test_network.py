"""The interface that gloo is told to use."""

from __future__ import annotations

import os

from edm_ray.distributed import network


def test_an_interface_is_found_by_its_address():
    assert network.interface_of("127.0.0.1") == "lo"
    assert network.interface_of("203.0.113.9") is None


def test_gloo_listens_where_ray_reaches_the_node_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv(network.VARIABLE, "x")  # so that all is undone at the end
    monkeypatch.delenv(network.VARIABLE)
    network.use_own_interface()
    assert os.environ[network.VARIABLE] == "lo"
    monkeypatch.setenv(network.VARIABLE, "mine")
    network.use_own_interface()
    assert os.environ[network.VARIABLE] == "mine"
    monkeypatch.delenv(network.VARIABLE)
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: "203.0.113.9")
    network.use_own_interface()
    assert network.VARIABLE not in os.environ  # gloo's own choice
