"""The table of `make demo`: no name and no figure is cut, however narrow the terminal is."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from flows.demo import _next_steps, _servers, results_table
from flows.report import COLUMNS, RunReport, VariantReport

FIGURES = ("0.586", "0.891", "124.2 MB", "12", "11", "unchanged", "19 h 40 min")


def printed(names: list[str], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(COLUMNS, [(name, *FIGURES) for name in names], console.width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 88, 100, 200])
@pytest.mark.parametrize("names", [["yolov7-tiny"], ["yolov7-tiny-silu", "yolov7-x"], ["my-own-detector-for-bottles"]])
def test_names_and_figures_are_whole(names, width):
    text = printed(names, width)
    joined = " ".join(text.replace("│", " ").split())
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for part in (*names, *(FIGURES if width >= 80 else ())):
        assert part in joined or part.replace(" ", "") in joined.replace(" ", "")


def test_the_shipped_variant_has_a_line_of_its_own_at_80_columns():
    lines = [line for line in printed(["yolov7-tiny"], 80).splitlines() if "yolov7-tiny" in line]
    assert len(lines) == 1 and all(figure in lines[0] for figure in FIGURES)


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({}, ["--backend-store-uri sqlite:///mlflow.db ", "PREFECT_HOME=.local/prefect "]),
        ({"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}, ["--backend-store-uri sqlite:///mlflow.db "]),
        ({"MLFLOW_TRACKING_URI": "sqlite:////srv/all.db"}, ["--backend-store-uri sqlite:////srv/all.db "]),
        ({"MLFLOW_TRACKING_URI": "http://u:secret-word@mlflow:5000"}, ["http://***@mlflow:5000"]),
        ({"PREFECT_API_URL": "http://prefect:4200/api"}, ["http://prefect:4200/api"]),
        ({"PREFECT_HOME": "/srv/prefect"}, ["PREFECT_HOME=/srv/prefect "]),
    ],
)
def test_the_next_steps_lead_to_the_servers_that_were_used(tmp_path, monkeypatch, variables, shown):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = "\n".join(_servers())
    for part in shown:
        assert part in text + " "
    assert "secret-word" not in text


def test_the_next_steps_name_an_alias_that_exists():
    plain = VariantReport("yolov7-tiny")
    report = RunReport([], [replace(plain, version=1)], [], None, 1.0)
    assert any("models:/yolov7-tiny@challenger" in line for line in _next_steps(report))
