"""Records of an export: its verification, figures and card, and `model.json`, the manifest of all files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolov7.artefact import DESCRIPTION, FORMATS_FILE, listed
from yolov7.documents import load_json
from yolov7.export.model_card import MODEL_CARD, model_card
from yolov7.export.verify import VerifyReport
from yolov7.files import write_json, write_text
from yolov7.int8_files import SENSITIVITY_PAGE

VERIFICATION, FIGURES = "verify.json", "metrics.json"


def write_records(out: Path, description: dict[str, Any], report: VerifyReport) -> None:
    """Verification, figures and card; then `model.json`, the manifest of all the others, also of the page on the
    sensitivity of layers if there is one.
    """
    description["figures"] = figures(report)
    verified = {name: entry["sha256"] for name, entry in description["files"].items()}
    write_json(out / VERIFICATION, {**report.to_dict(), "files": verified})
    write_json(out / FIGURES, headline(report))
    write_text(out / MODEL_CARD, model_card(description, report.to_dict(), load_json(out / FORMATS_FILE)))
    pages = [SENSITIVITY_PAGE] if (out / SENSITIVITY_PAGE).is_file() else []
    description["files"] |= listed(out, [*pages, VERIFICATION, FIGURES, MODEL_CARD])
    write_json(out / DESCRIPTION, description)


def figures(report: VerifyReport) -> dict[str, Any]:
    """The verification for model.json: AP of every file, and of the trained network at the same thresholds."""
    forms = {form.name: {"AP": form.ap, "trained_AP": form.trained_ap, "passed": form.passed} for form in report.forms}
    return {"validation_images": len(report.images), "forms": forms}


def headline(report: VerifyReport) -> dict[str, float]:
    """The figures for `dvc metrics show`, over the forms that must agree up to rounding; verify.json has the rest."""
    exact = [form for form in report.forms if form.limits == report.limits]
    boxes = [form.max_box_difference for form in exact if form.max_box_difference is not None]
    return {
        "verify_AP_difference": max(abs(form.ap - form.trained_ap) for form in exact),
        "verify_box_difference_px": max(boxes, default=0.0),
    }


def summary(report: VerifyReport) -> list[str]:
    """One line per form."""
    lines = []
    for form in report.forms:
        raw = "" if form.max_raw_difference is None else f"scores within {form.max_raw_difference:.1e}, "
        boxes = "" if form.max_box_difference is None else f"boxes within {form.max_box_difference:.1e} px, "
        state = "agrees" if form.passed else "DIFFERS"
        lines.append(f"{form.name} {state}: {raw}{boxes}AP {form.ap:.3f} (trained {form.trained_ap:.3f})")
    return lines
