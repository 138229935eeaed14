"""The page that compares variants, and the report of one, made by their stages and opened in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from stages.project.command import environment
from tests.pipeline.export_folder import CATEGORY_IDS, CLASSES, image_bytes
from yolov7.catalogue import listed_infos
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import build_index

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]

VARIANTS = ("yolov7-tiny", "yolov7")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def workspace(tmp_path: Path, export: Path) -> Path:
    """Outputs of the stages before it, for two variants."""
    images = tmp_path / "data/ingested/test/images"
    images.mkdir(parents=True)
    (images / "first.png").write_bytes(image_bytes())
    categories = [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    records = [{"id": 1, "file_name": "first.png", "width": 48, "height": 64}]
    box = {"id": 1, "image_id": 1, "category_id": CATEGORY_IDS[0], "bbox": [4.0, 4.0, 20.0, 30.0]}
    build_index(CocoAnnotations(tmp_path / "a.json", records, [box], categories), images, tmp_path / "data/index/test")
    document = {"sha256": "d", "splits": {"test": {"sha256": "ab" * 32}}, "test_is_val": False}
    (tmp_path / "data/ingested/dataset.json").write_text(json.dumps(document))
    values = {"variants": list(VARIANTS), "per_variant": {name: {} for name in VARIANTS}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    figures = dict.fromkeys(("AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"), 0.4)
    for place, variant in enumerate(VARIANTS):
        shutil.copytree(export, tmp_path / "models" / variant / "export")
        (tmp_path / "models" / variant / "registered.json").write_text(json.dumps({"version": 7 + place}))
        report = tmp_path / "reports" / variant
        report.mkdir(parents=True)
        more = {"AP": 0.3 + 0.2 * place, "AP_low": 0.25 + 0.2 * place, "AP_high": 0.4 + 0.2 * place}
        more |= {"per_class": dict.fromkeys(CLASSES, 0.3), "test_data_sha256": "ab" * 32}
        (report / "metrics.json").write_text(json.dumps({**figures, **more}))
    return tmp_path


def compare(workspace: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stages.compare_variants", "--rounds", "3"]
    return subprocess.run(command, cwd=workspace, env=environment(), capture_output=True, text=True, timeout=300)


def browser(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    base = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={workspace / 'browser'}"]
    base += ["--disable-dev-shm-usage", "--window-size=1200,2400"]
    return subprocess.run([*base, *arguments], capture_output=True, text=True, errors="replace", timeout=300)


def screenshot(page: Path, workspace: Path) -> np.ndarray:
    """The page as it looks in a window of 1200 x 2400."""
    picture = workspace / "page.png"
    shot = browser(workspace, f"--screenshot={picture}", page.as_uri())
    assert picture.is_file(), shot.stderr[-2000:]
    image = cv2.imread(str(picture))
    assert image.shape[:2] == (2400, 1200)
    return image


def dom_of(page: Path, workspace: Path) -> str:
    """The page after its scripts have run."""
    done = browser(workspace, "--dump-dom", page.as_uri())
    assert done.stdout, done.stderr[-2000:]
    return done.stdout


def test_the_stage_compares_what_is_evaluated(workspace: Path) -> None:
    (workspace / "reports/yolov7/metrics.json").unlink()
    done = compare(workspace)
    assert done.returncode == 0, done.stderr
    assert "yolov7: not evaluated yet: run `dvc repro evaluate@yolov7`" in done.stderr
    page = (workspace / "reports/comparison.html").read_text()
    assert "Not evaluated yet" in page and "0.300 (0.250–0.400)" in page
    shutil.rmtree(workspace / "reports")
    nothing = compare(workspace)
    assert nothing.returncode == 2 and nothing.stderr.strip().splitlines()[-1].startswith("error: reports: no variant")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to look at the page with")
def test_the_page_in_a_browser(workspace: Path) -> None:
    done = compare(workspace)
    assert done.returncode == 0, done.stderr
    page = workspace / "reports/comparison.html"
    # A click on "AP" sorts; the page then says in its title what stands first.
    probe = (
        "<script>addEventListener('load', () => { const table = document.querySelector('table.sorts');"
        "table.querySelectorAll('th')[1].click(); document.title = table.tBodies[0].rows[0].cells[0].textContent; })"
        "</script></body>"
    )
    (workspace / "probe.html").write_text(page.read_text().replace("</body>", probe))
    image = screenshot(page, workspace)
    inked = (image.min(axis=2) < 128).mean(axis=1)
    assert (inked > 0).mean() > 0.2, "text and charts from top to bottom"
    dom = dom_of(workspace / "probe.html", workspace)
    assert "<title>yolov7</title>" in dom, dom[:300]
    speeds = {
        (said.speed.device, said.speed.precision) for one in listed_infos() if (said := one.published) and said.speed
    }
    assert dom.count("<svg") == 3 + 2 + len(speeds), "latency, parameters and GFLOPs; latency by device as published"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to look at the page with")
def test_the_report_of_a_variant_in_a_browser(workspace: Path) -> None:
    # What the evaluation stage does not find in this workspace but reads.
    done = subprocess.run(
        [sys.executable, "-m", "stages.evaluate", "--variant", "yolov7"],
        cwd=workspace, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = workspace / "reports/yolov7/report.html"
    assert "http://" not in page.read_text().replace("http://www.w3.org/", "") and "https://" not in page.read_text()
    image = screenshot(page, workspace)
    inked = (image.min(axis=2) < 128).mean(axis=1)
    assert (inked > 0).mean() > 0.2, "text and charts from top to bottom"
    probe = (
        "<script>addEventListener('load', () => { const images = [...document.images];"
        "const table = document.querySelector('table.sorts'); table.querySelectorAll('th')[0].click();"
        "table.querySelectorAll('th')[0].click(); const first = table.tBodies[0].rows[0].cells[0].textContent;"
        "document.title = [images.length > 0, images.every(one => one.naturalWidth > 0),"
        "document.documentElement.scrollWidth <= innerWidth, first].join(' '); })</script></body>"
    )
    (workspace / "probe.html").write_text(page.read_text().replace("</body>", probe))
    titles = dom_of(workspace / "probe.html", workspace)
    assert "<title>true true true " in titles, titles[:300]
    assert titles.count("<svg") >= 2
