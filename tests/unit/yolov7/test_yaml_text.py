"""YAML: every scalar also as written, within bounds, no key twice; in every file that we read."""

import time

import pytest
import yaml

from flows.runner.worktree import _relocked
from stages.project.params import load
from stages.validation.suite import read_suite
from stages.write_dataset import _data_yaml
from yolov7.data.formats.yolo_declared import read_class_names
from yolov7.documents import DocumentError
from yolov7.errors import ConfigError
from yolov7.yaml_text import read_yaml

TEXTS = ["no", "yes", "on", "off", "y", "true", "null", "~", "0402", "1:30", "1e3", "1.0", "0x10", "0o7", "1_000", ".5",
         "=", "<<", "2020-01-02", "2020-13-45", ".inf", "-.nan"]  # fmt: skip
"""Plain words that some version of YAML takes for something else."""


def test_names_in_a_list_or_a_mapping_are_texts_as_written(tmp_path):
    listed, mapped = tmp_path / "list.yaml", tmp_path / "map.yaml"
    listed.write_text("names:\n" + "".join(f"- {text}\n" for text in TEXTS))
    mapped.write_text("names:\n" + "".join(f"  {number}: {text}\n" for number, text in enumerate(TEXTS)))
    assert read_class_names(listed) == read_class_names(mapped) == TEXTS


@pytest.mark.parametrize("text", TEXTS)
def test_names_in_params_are_texts_as_written(tmp_path, text):
    file = tmp_path / "params.yaml"
    sets = "train: {images: 2024, labels: no}, val: {images: i, labels: l}"
    file.write_text(
        f"data: {{source: yolo, yolo: {{names: [{text}, cat], {sets}}}}}\n"
        f"train: {{class_weights: {{{text if text != '<<' else 'x'}: 2}}}}\nper_variant: {{yolov7-tiny: {{}}}}\n"
        "registry: {experiment: 0402}\n"
    )
    params = load(file)
    assert params.data.yolo is not None and params.data.yolo.names == (text, "cat")
    assert (params.data.yolo.train.images, params.data.yolo.train.labels) == ("2024", "no")
    assert params.registry.experiment == "0402"
    if text != "<<":
        assert params.train["class_weights"] == {text: 2}


def test_settings_keep_their_types(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("validation: {check_images: no, near_duplicate_bits: null}\nper_variant: {yolov7-tiny: {}}\n")
    validation = load(file).validation
    assert validation.check_images is False and validation.near_duplicate_bits is None


@pytest.mark.parametrize("value", ["", "~", "{a: b}"])
def test_nothing_is_not_a_text_outside_lists(tmp_path, value):
    (tmp_path / "params.yaml").write_text(f"data: {{folder: {value}}}\n")
    with pytest.raises(ConfigError, match=r"data\.folder: Input should be a valid string"):
        load(tmp_path / "params.yaml")


def test_a_rule_about_names_compares_texts(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "- {name: known, severity: warning, table: categories, column: name, says: s, found: f, advice: a,\n"
        "   expectation: expect_column_values_to_be_in_set, arguments: {value_set: [no, 0402], mostly: 0.5}}\n"
    )
    (rule,) = read_suite(tmp_path, {}, where="params.yaml")
    assert rule.arguments == {"value_set": [False, 258], "mostly": 0.5}
    assert rule.about_texts().arguments == {"value_set": ["no", "0402"], "mostly": 0.5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", r"the key 'a' is given twice \(line 3"),
        ("names: {0: cat, 0: dog}", "the key '0' is given twice"),
        ("[" * 2000, "nested more than"),
        ("a: &a [*a]", "contains itself"),
        ("a: !!python/object/apply:os.system [ls]", "tag"),
        ("a: !own b", "tag"),
        ("? [a, b]\n: c", "used as a key"),
        ("a: [1", "expected"),
        ("a: " + "b" * 5_000_000, "larger than"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_in_one_line(text, words):
    with pytest.raises(DocumentError, match=words) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)


def test_aliases_of_aliases_end_soon():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    start = time.monotonic()
    with pytest.raises(DocumentError, match="values"):
        read_yaml("\n".join(lines))
    assert time.monotonic() - start < 10


def test_merged_mappings_and_aliases_are_read():
    document = read_yaml("base: &b {x: 1, y: no}\nc: {<<: *b, y: 2}\nd: [*b]")
    assert document.value["c"] == {"x": 1, "y": 2} and document.written["d"] == [{"x": "1", "y": "no"}]


@pytest.mark.parametrize("edit", ["names: [cat, dog]\nnames: [dog, cat]\n", "names: [cat]\nnc: 1\nnc: 2\n"])
def test_a_data_yaml_with_a_key_twice_is_refused(tmp_path, edit):
    (tmp_path / "data.yaml").write_text(edit)
    with pytest.raises(Exception, match="given twice"):
        read_class_names(tmp_path / "data.yaml")


def test_a_lock_keeps_what_yaml_1_2_calls_a_text():
    names = "".join(f"      - {name}\n" for name in ("no", "on", "402", "'402'", "1e3"))
    lock = f"schema: '2.0'\nstages:\n  ingest:\n    params:\n      names:\n{names}"
    again = _relocked(lock, {"train": {"cmd": "x", "outs": []}})
    assert again.startswith(lock) and yaml.safe_load(again)["stages"]["train"] == {"cmd": "x", "outs": []}
    assert yaml.safe_load(_relocked("", {"train": {"cmd": "x"}})) == {
        "schema": "2.0",
        "stages": {"train": {"cmd": "x"}},
    }


@pytest.mark.parametrize("name", [*TEXTS, "a: b", "über", '"', "'", "#", "- x", "\u2028"])
def test_names_are_written_so_that_every_reader_has_a_text(name):
    text = _data_yaml(["train"], [name])
    assert yaml.safe_load(text)["names"] == {0: name} and read_yaml(text).written["names"] == {"0": name}
    assert text.splitlines()[3].startswith('  0: "')
