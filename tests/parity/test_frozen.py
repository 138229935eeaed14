"""Files and figures of revision 85b8700: later revisions read them, and compute the same.

The data lie in tests/data/85b8700; record_frozen.py wrote them and says when they may be written again (never).

Bits are compared where libraries and processor are the recorded ones. Elsewhere PyTorch, oneDNN and OpenCV choose other
kernels, which add in another order: the small training then ends about 1e-6 away from the recorded weights (measured
with AVX2 and SSE kernels against AVX-512), so `CLOSE` leaves room for that and for nothing that learning would notice.
"""

from __future__ import annotations

import shutil

import frozen
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_training import parameters, trainer, training_data

import yolov7
from yolov7.files import sha256_file

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
VARIANTS = list(frozen.read("networks.json"))


# Parameters and identities -------------------------------------------------------------------------------------------


def assert_same_on_recorded_keys(recorded, group):
    """Fields that came later are at their defaults."""
    assert frozen.on_keys_of(recorded, group.model_dump(mode="json")) == recorded
    assert frozen.not_in(recorded, group.model_dump(mode="json", exclude_defaults=True)) == []


@pytest.mark.parametrize("preset", frozen.read("presets.json"))
def test_a_preset_gives_the_same_parameters(preset):
    assert_same_on_recorded_keys(frozen.read("presets.json")[preset], frozen.presets()[preset])


def test_the_shipped_params_are_read_as_they_were():
    assert_same_on_recorded_keys(frozen.read("params.json"), frozen.shipped_params())


def test_a_run_keeps_its_identity_and_fingerprint():
    """Otherwise a stopped training would not be found again, or would be refused."""
    recorded = frozen.read("identities.json")
    now = frozen.identities()
    for name, then in recorded.items():
        identity, fingerprint = now[name]
        assert identity == then["identity"], name
        assert fingerprint == then["fingerprint"], name


# Networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_is_rebuilt_from_its_json(variant):
    rebuilt = frozen.network_of(frozen.read("networks.json")[variant]["network"])
    assert rebuilt == frozen.network(variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_keep_their_names_and_shapes(variant):
    recorded = frozen.read("networks.json")[variant]
    model = yolov7.create_model(variant, num_classes=80, device="meta")
    assert frozen.layout(model) == recorded["training"]
    assert frozen.layout(model.reparameterize()) == recorded["deploy"]


@pytest.mark.parametrize("name", ["small-training.safetensors", "exported/model.safetensors"])
def test_a_checkpoint_gives_the_same_outputs(name):
    model, metadata = yolov7.load_checkpoint(frozen.DATA / name)
    form = "training" if "training" in name else "deploy"
    assert (model.form, metadata.form, metadata.num_classes, metadata.image_size) == (form, form, 3, 96)
    assert metadata.extra["run"] == "r1"
    # Other kernels move a corner near 0 by 3e-5 pixels.
    tolerance = CLOSE if frozen.changed(*frozen.ARITHMETIC) else {"rtol": 1e-5, "atol": 1e-5}
    with np.load(frozen.DATA / f"outputs-{model.form}.npz") as recorded:
        found = frozen.outputs(model, torch.from_numpy(recorded["images"]))
        assert found.keys() == recorded.keys() - {"images"}
        for key, value in found.items():
            np.testing.assert_allclose(value, recorded[key], **tolerance, err_msg=key)


def test_the_training_form_still_becomes_the_deploy_form():
    model, _ = yolov7.load_checkpoint(frozen.DATA / "small-training.safetensors")
    deploy = model.reparameterize().state_dict()
    recorded = load_file(frozen.DATA / "exported/model.safetensors")
    assert list(deploy) == list(yolov7.load_checkpoint(frozen.DATA / "exported/model.safetensors")[0].state_dict())
    assert deploy.keys() == recorded.keys()
    for name, tensor in deploy.items():
        torch.testing.assert_close(tensor, recorded[name], rtol=1e-5, atol=1e-6, msg=name)


# ONNX ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    return folder, {name: frozen.graph_figures(graph) for name, graph in frozen.tiny_graphs(folder).items()}


def skip_other_weights():
    """The weights themselves are other bits where random numbers and fusion go through other kernels."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in frozen.SAME_INITIAL_BITS:
        pytest.skip(f"bits recorded with the kernels {' or '.join(frozen.SAME_INITIAL_BITS)}, here {capability}")


@pytest.mark.parametrize("name", ["decoded", "nms"])
def test_the_onnx_file_of_yolov7_tiny_has_the_same_bytes(graphs, name):
    if changed := frozen.changed(*frozen.EXPORTER):
        pytest.skip(f"the exporter's versions decide the bytes: {changed}")
    skip_other_weights()
    assert sha256_file(graphs[0] / f"{name}.onnx") == frozen.read("onnx.json")[name]["sha256"]


@pytest.mark.parametrize("name", ["decoded", "nms"])
def test_the_onnx_graph_of_yolov7_tiny_holds_the_same_values(graphs, name):
    """The initializers without their names and order."""
    if changed := frozen.changed(*frozen.EXPORTER):
        pytest.skip(f"the exporter's versions decide which constants are initializers: {changed}")
    skip_other_weights()
    for key in ("operators", "initializers", "initializers_sha256"):
        assert graphs[1][name][key] == frozen.read("onnx.json")[name][key], key


@pytest.mark.parametrize("name", ["decoded", "nms"])
def test_the_onnx_graph_of_yolov7_tiny_has_the_same_convolutions(graphs, name):
    """Whatever the exporter's version: shapes, and sums of weights and biases."""
    found, recorded = graphs[1][name]["convolutions"], frozen.read("onnx.json")[name]["convolutions"]
    assert [row[0] for row in found] == [row[0] for row in recorded]
    np.testing.assert_allclose([row[1:] for row in found], [row[1:] for row in recorded], rtol=1e-4, atol=1e-3)


# Training ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return training_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(index, tmp_path_factory):
    """The small training from its start."""
    return trainer(index, tmp_path_factory.mktemp("whole"), parameters()).fit()


@pytest.fixture(scope="module")
def resumed(index, tmp_path_factory):
    """The small training from the recorded state: in the second epoch, with gradients that no step has used."""
    folder = tmp_path_factory.mktemp("resumed") / "states"
    shutil.copytree(frozen.DATA / "training/states", folder)
    return trainer(index, folder, parameters()).fit()


@pytest.mark.parametrize("run", ["whole", "resumed"])
def test_the_small_training_ends_with_the_same_bits(run, request):
    if changed := frozen.changed(*frozen.ARITHMETIC):
        pytest.skip(f"libraries and processor decide the bits: {changed}")
    outcome = request.getfixturevalue(run)
    found, recorded = load_file(outcome.last), load_file(frozen.DATA / "training/last.safetensors")
    assert found.keys() == recorded.keys()
    assert [name for name in recorded if not torch.equal(found[name], recorded[name])] == []
    assert frozen.figures_of(outcome.history) == frozen.read("training/history.json")


@pytest.mark.parametrize("run", ["whole", "resumed"])
def test_the_small_training_ends_with_nearly_the_same_figures(run, request):
    outcome = request.getfixturevalue(run)
    assert outcome.finished
    found, recorded = load_file(outcome.last), load_file(frozen.DATA / "training/last.safetensors")
    assert found.keys() == recorded.keys()
    for name, tensor in recorded.items():
        torch.testing.assert_close(found[name], tensor, **CLOSE, msg=name)
    history = frozen.read("training/history.json")
    assert len(outcome.history) == len(history)
    for row, then in zip(frozen.figures_of(outcome.history), history, strict=True):
        assert row.keys() == then.keys()
        for key, value in then.items():
            # Two detections of nearly one score may change places, which moves AP by a step.
            assert row[key] == pytest.approx(value, rel=1e-4, abs=0.02 if key.startswith("val/") else 1e-4), key


# Exported files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["onnx", "torch", "openvino"])
def test_an_exported_folder_still_detects_the_same(runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    detector = yolov7.load_detector(frozen.DATA / "exported", runtime=runtime)
    assert (detector.confidence, detector.iou) == (0.36, 0.5)
    (found,) = detector.predict([frozen.image()])
    frozen.assert_same_detections(frozen.rows(found))


def test_the_file_with_suppression_inside_still_detects_the_same():
    detector = yolov7.load_detector(frozen.DATA / "exported/model-nms.onnx")
    (found,) = detector.predict([frozen.image()])
    frozen.assert_same_detections(frozen.rows(found))


def test_the_file_with_raw_maps_still_detects_the_same():
    detector = yolov7.load_detector(frozen.DATA / "exported/optional/model-raw.onnx")
    (found,) = detector.predict([frozen.image()])
    frozen.assert_same_detections(frozen.rows(found))
