"""MODEL_CARD.md: an export folder described for people, from model.json and verify.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yolov7.artefact import ONNX, OPTIONAL
from yolov7.int8_files import Int8Making, makings, runtime_of
from yolov7.model.variants import FAMILIES
from yolov7.text import markdown
from yolov7.weights.origin import stated_origin

MODEL_CARD = "MODEL_CARD.md"

_NAMED_CLASSES = 100


def model_card(description: Mapping[str, Any], verification: Mapping[str, Any], formats: Mapping[str, Any]) -> str:
    """Markdown from the contents of model.json, verify.json and optional/formats.json. Same contents, same text."""
    variant, names = description["variant"], description["class_names"]
    parts = [
        f"# {markdown(variant)}, {len(names)} {'class' if len(names) == 1 else 'classes'}",
        f"A detector{_of_family(description.get('family'))}, trained and exported by yolov7-pipeline. "
        "`model.json` holds the same facts for programs, with the sha256 of every file.",
        "## Files",
        _table(("file", "bytes", "sha256"), _files(description["files"])),
        "## Input and output",
        _input(description),
        "## Origin",
        _table(("", ""), _origin(description)),
        "## Difference between the files and the trained network",
        f"On {len(verification['images'])} validation images; AP by the COCO tool, -1 without ground truth. "
        "This compares the forms with each other; the evaluation measures the model's accuracy on unseen images.",
        _table(
            ("form", "AP", "trained AP", "largest difference of a probability", "of a box, px", "unmatched", "passed"),
            [_form(name, form) for name, form in verification["forms"].items()],
        ),
        *_int8(formats.get("int8", {}), description["files"]),
        *_tensorrt(formats.get("tensorrt", {})),
        "## Classes",
        _classes(names, description["category_ids"]),
        "## Limits of use",
        "The model finds what its training data shows; no figure here covers other cameras, sizes, lighting or "
        "classes. Scores are not probabilities of being right unless they were calibrated on your data.",
    ]
    return "\n\n".join(parts) + "\n"


def _of_family(name: str | None) -> str:
    titles = [family.title for family in FAMILIES if family.name == name]
    return f" of the {titles[0]} family" if titles else ""


def _files(files: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(f"`{name}`", f"{file['bytes']:,}", f"`{file['sha256']}`") for name, file in files.items()]


def _input(description: Mapping[str, Any]) -> str:
    contract = description["contracts"]["model.onnx"]
    given, output = contract["input"], contract["output"]
    thresholds = description["thresholds"]
    shape = " x ".join(str(side) for side in given["shape"])
    lines = [
        f"* input `{given['name']}`: {given['type']} {given['layout']} ({shape}), {given['color']} in "
        f"{given['range'][0]:g} to {given['range'][1]:g}, sides multiples of {given['stride']}; "
        f"trained at {description['image_size']} pixels",
        f"* letterbox: grey {given['letterbox']['fill']}, image in the {given['letterbox']['place']}",
        f"* output `{output['name']}` ({' x '.join(str(side) for side in output['shape'])}): "
        f"{', '.join(output['columns'])}; boxes in {output['boxes']}; score = {output['score']}",
        f"* thresholds: confidence {thresholds['confidence']:g}, IoU {thresholds['iou']:g}, at most "
        f"{thresholds['max_detections']} detections an image; in `model-nms.onnx` they are built in",
    ]
    return "\n".join(lines)


def _origin(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = {
        "data_sha256": "training data, sha256",
        "data_dvc": "training data, DVC",
        "git_revision": "git revision",
        "run_id": "MLflow run",
        "licence": "licence",
    }
    rows = [(label, str(description[key])) for key, label in known.items() if description.get(key)]
    for origin in stated_origin(description.get("extra", {})).values():
        rows.append(("published weights", f"{origin['address']}, {origin['licence']}, {origin['sha256']}"))
    return rows


def _form(name: str, form: Mapping[str, Any]) -> tuple[str, ...]:
    raw, boxes = form["max_raw_difference"], form["max_box_difference"]
    return (
        name,
        f"{form['ap']:.4f}",
        f"{form['trained_ap']:.4f}",
        "" if raw is None else f"{raw:.1e}",
        "" if boxes is None else f"{boxes:.1e}",
        f"{100 * form['detections']['unmatched_share']:.1f} %",
        "yes" if form["passed"] else "NO",
    )


def _int8(reports: Mapping[str, Any], files: Mapping[str, Any]) -> list[str]:
    """Each int8 file beside the float file, and how it was made."""
    found = makings(reports)
    if not found:
        return []
    floats = max(making.float_ap for making in found.values())  # of one file, the same for all
    rows = [(f"`{ONNX}`", runtime_of(ONNX), _megabytes(files, ONNX), f"{floats:.4f}", "")]
    for making in found.values():
        size = _megabytes(files, f"{OPTIONAL}/{making.file}")
        change = f"{making.ap - making.float_ap:+.4f}"
        rows.append((f"`{making.file}`", runtime_of(making.file), size, f"{making.ap:.4f}", change))
    return [
        "## Int8",
        "AP on validation images, by which layers may have returned to float. Figures on unseen images, and latency, "
        "are in the report of the evaluation.",
        _table(("file", "runtime", "MB", "AP", "difference"), rows),
        *(_int8_making(making) for making in found.values()),
    ]


def _megabytes(files: Mapping[str, Any], name: str) -> str:
    """Size of a file in 10^6 bytes, with the `.bin` of an `.xml`."""
    parts = [name, f"{name.removesuffix('.xml')}.bin"] if name.endswith(".xml") else [name]
    found = [files[part]["bytes"] for part in parts if part in files]
    return f"{sum(found) / 1e6:.1f}" if found else ""


def _int8_making(making: Int8Making) -> str:
    kept = making.kept_in_float
    in_float = f"kept in float: {', '.join(f'`{layer}`' for layer in kept)}" if kept else "none kept in float"
    return (
        f"`{making.file}`: {making.how}; AP on {making.validation_images} validation images. "
        f"Of {making.layers} layers {in_float}. Steps: {making.attempts}."
    )


def _tensorrt(reports: Mapping[str, Any]) -> list[str]:
    if not reports:
        return []
    lines = [
        f"* `{name}`: {'no problems found' if report['passed'] else '; '.join(report['problems'])}"
        for name, report in reports.items()
    ]
    head = "Checked against the operator list of TensorRT's ONNX parser; no engine was built."
    return ["## TensorRT", head, "\n".join(lines)]


def _classes(names: Sequence[str], category_ids: Sequence[int]) -> str:
    shown = [f"{number} {markdown(name)}" for number, name in enumerate(names)][:_NAMED_CLASSES]
    more = f", and {len(names) - len(shown)} more in `model.json`" if len(names) > len(shown) else ""
    return f"Class numbers and names: {', '.join(shown)}{more}. Category ids: {category_ids[0]} to {category_ids[-1]}."


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *[[_plain(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text without line breaks and table columns."""
    return " ".join(text.split()).replace("|", "\\|")
