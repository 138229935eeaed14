"""Number of training processes, and reasons for each to stop: the environment, signals, a parent that is gone."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from stages.training.processes import loader_workers, restarted, start_processes
from yolov7.errors import ConfigError
from yolov7.train.stopping import stop_requests

COMMAND = ["-m", "stages.train", "--variant", "v"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("YOLOV7_", "TORCHELASTIC")) or name == "WORLD_SIZE"]:
        monkeypatch.delenv(name)


@pytest.fixture
def launches(monkeypatch) -> list:
    made = []
    monkeypatch.setattr("yolov7.train.launch.launch", lambda *a, **k: made.append((a, k)) or 75)
    return made


def test_one_process_starts_no_other(launches, monkeypatch):
    assert start_processes(COMMAND, batch_size=7, before=lambda: launches.append("not asked for")) is None
    monkeypatch.setenv("YOLOV7_PROCESSES", "4")
    monkeypatch.setenv("WORLD_SIZE", "4")
    # One of several already: it must not start four more.
    assert start_processes(COMMAND, batch_size=7) is None
    assert launches == []


def test_the_environment_sets_the_number_and_the_stage_returns_their_status(launches, monkeypatch):
    for name, value in {"PROCESSES": "2", "NODES": "3", "RENDEZVOUS": "10.0.0.1:29400", "RESTARTS": "5"}.items():
        monkeypatch.setenv(f"YOLOV7_{name}", value)
    assert start_processes(COMMAND, batch_size=12) == 75
    asked = []
    assert start_processes(COMMAND, batch_size=12, before=lambda: asked.append(len(launches))) == 75
    assert asked == [1], "once, and before they are launched"
    (arguments, options), _ = launches
    assert arguments == (COMMAND,)
    assert options == {"processes": 2, "nodes": 3, "rendezvous": "10.0.0.1:29400", "restarts": 5, "stopped": 75}
    with pytest.raises(ConfigError, match=r"10 images cannot be divided among 6 processes; use 6 or 12"):
        start_processes(COMMAND, batch_size=10)
    monkeypatch.delenv("YOLOV7_RENDEZVOUS")
    with pytest.raises(ConfigError, match=r"YOLOV7_RENDEZVOUS to HOST:PORT"):
        start_processes(COMMAND, batch_size=12)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", ""])
def test_an_impossible_number_of_processes_is_refused(launches, monkeypatch, value):
    monkeypatch.setenv("YOLOV7_PROCESSES", value)
    with pytest.raises(ConfigError, match=f"YOLOV7_PROCESSES: a number from 1 on is expected, got {value!r}"):
        start_processes(COMMAND, batch_size=4)
    assert launches == []


def test_loader_workers_share_the_cores_of_a_machine(monkeypatch):
    accelerator = torch.device("meta")
    monkeypatch.setattr(os, "cpu_count", lambda: 24)
    assert (loader_workers(CPU), loader_workers(accelerator)) == (0, 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert loader_workers(accelerator) == 3
    monkeypatch.setenv("YOLOV7_WORKERS", "5")
    assert (loader_workers(CPU), loader_workers(accelerator)) == (5, 5)


def test_a_second_signal_is_not_waited_for_by_one_process_but_by_several(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        with pytest.raises(SystemExit, match="143"):
            signal.raise_signal(signal.SIGTERM)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_of_several_stops_when_the_process_that_started_it_is_gone(monkeypatch):
    parent = os.getppid()
    for several in (False, True):
        monkeypatch.setenv("WORLD_SIZE", "2" if several else "1")
        monkeypatch.setattr(os, "getppid", lambda: parent)
        with stop_requests() as stop:
            assert not stop()
            monkeypatch.setattr(os, "getppid", lambda: 1 if parent != 1 else 2)
            assert stop() is several


def test_only_the_first_start_is_a_fresh_one(monkeypatch):
    assert not restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted()
