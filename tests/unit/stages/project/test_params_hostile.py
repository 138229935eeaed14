"""params.yaml from a careless or hostile hand: one line that names the key, no traceback, no hang."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import pytest

from stages.project import command
from stages.project import params as params_module
from stages.project.names import check_hashes, check_model_name, check_revision, check_variant
from yolov7.errors import ConfigError
from yolov7.yaml_text import read_yaml

ROOT = Path(__file__).resolve().parents[4]
BASE = (ROOT / "params.yaml").read_text(encoding="utf-8")
LEVELS = 20_000
BOMB = "\n".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}' if n else 'x'] * 9)}]" for n in range(12))

TEXTS = {
    "deep lists": f"{BASE}\nx: {'[' * LEVELS}{']' * LEVELS}",
    "deep mappings": f"{BASE}\nx: {'{a: ' * LEVELS}1{'}' * LEVELS}",
    "deep blocks": f"{BASE}\nx:\n" + "".join(f"{' ' * n}a:\n" for n in range(1, 1200)),
    "an unfinished deep list": f"{BASE}\nx: {'[' * LEVELS}",
    "aliases of aliases": f"{BASE}\n{BOMB}",
    "an alias of itself": f"{BASE}\nx: &a [*a]",
    "a number of 5000 digits": BASE.replace("seed: 0", f"seed: {'9' * 5000}"),
    "a hexadecimal number of 5000 digits": BASE.replace("seed: 0", f"seed: 0x{'f' * 5000}"),
    "a number of 100 digits": BASE.replace("seed: 0", f"seed: {'9' * 100}"),
    "a number beyond all floats": BASE.replace("margin: 0.0", "margin: 1.0e+999"),
    "a date that is none": f"{BASE}\nx: 2001-99-99",
    "a tag that fails": f"{BASE}\nx: !!bool x",
    "another tag that fails": f"{BASE}\nx: !!timestamp x",
    "a Python object": f"{BASE}\nx: !!python/object/apply:os.system [x]",
    "bytes": BASE.replace("experiment: yolov7", "experiment: !!binary AAAA"),
    "NUL in a value": BASE.replace("folder: datasets", 'folder: "a\\0b"'),
    "NUL in a key": f'{BASE}\n"a\\0b": 1',
    "NUL in a list": BASE.replace("variants: [", 'variants: ["a\\0", '),
    "an escape sequence": BASE.replace("experiment: yolov7", 'experiment: "a\\e[2Jb"'),
    "a lone surrogate": BASE.replace("experiment: yolov7", 'experiment: "a\\ud800b"'),
    "two documents": f"{BASE}\n---\na: 1",
    "a list": "- a",
    "nothing": "",
    "two million characters": f"{BASE}\n# {'x' * 2_000_000}",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_text_that_is_no_parameters_is_one_line_and_exit_code_2(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text, encoding="utf-8")
    started = time.monotonic()
    code = command._run(lambda params, args: pytest.fail("reached"), False, (), [])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: params.yaml") and len(lines[0]) < 600
    assert lines[0].isprintable() and time.monotonic() - started < 5


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \x00", b"a: \x1b[2J", b"\x80"])
def test_a_file_that_is_no_text_is_refused(content, tmp_path):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match="not readable as YAML"):
        params_module.load(tmp_path / "params.yaml")


def test_a_folder_in_its_place_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not readable"):
        params_module.load(tmp_path)


HOSTILE = [
    "a; touch x; #",
    "$(x)",
    "`x`",
    "a\nb",
    "a\r",
    "a b",
    "../x",
    "..",
    ".",
    ".x",
    "-h",
    "--help",
    "+x",
    "",
    "a/b",
]
HOSTILE += ["a\\b", "a@b", "a:b", "a'b", 'a"b', "a|b", "a&b", "a>b", "a*b", "a?b", "a[b]", "a{b}", "a\0b", "x" * 101]
HOSTILE += ["\u6f22" * 67, "a\u2028b", "a\x1bb", "a,b", "a=b", "a%b", "\u202ea"]


@pytest.mark.parametrize("name", [*HOSTILE, "a.b"], ids=ascii)
def test_a_variant_that_dvc_the_shell_or_a_folder_would_misread_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="variants"):
        check_variant(name, where="variants")
    text = BASE.replace("[yolov7-tiny]", repr([name]) if name.isprintable() else "[]")
    text = text.replace("  yolov7-tiny: {}", f"  {name!r}: {{network: own.py}}" if name.isprintable() else "  x: {}")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="variants"):
        params_module.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "name", ["yolov7-tiny", "my_net", "\u043a\u043e\u0442", "a+b", "7", "_x", "x" * 80, "\u6f22" * 60]
)
def test_names_of_users_networks_stay_valid(name):
    check_variant(name, where="variants")
    check_model_name(f"team 1.{name}", where="models")


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('model_prefix: ""', 'model_prefix: "../"', "registry.model_prefix"),
        ('model_prefix: ""', 'model_prefix: "a:b"', "registry.model_prefix"),
        ('model_prefix: ""', 'model_prefix: "-x"', "registry.model_prefix"),
        ('model_prefix: ""', 'model_prefix: "a@champion"', "registry.model_prefix"),
        ("experiment: yolov7", 'experiment: ""', "registry.experiment"),
        ("experiment: yolov7", 'experiment: "a\\nb"', "registry.experiment"),
        ("experiment: yolov7", f"experiment: {'x' * 300}", "registry.experiment"),
        ("folder: datasets", "folder: -rf", "data.folder"),
        ("folder: datasets", "folder: ''", "data.folder"),
        ("folder: datasets", "folder: s3://bucket/x", "data.folder"),
        ("folder: datasets", 'folder: "a\\nb"', "data.folder"),
        ("suite: validation", "suite: --help", "validation.suite"),
        ("  yolov7-tiny: {}", "  yolov7-tiny: {}\n  ../x: {network: a.py}", "per_variant"),
    ],
)
def test_names_and_folders_are_checked_where_they_are_read(old, new, key, tmp_path):
    assert old in BASE
    (tmp_path / "params.yaml").write_text(BASE.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        params_module.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("url", ["https://u:p/w@h/x.zip", "https://u:p@h/x.zip", "https://t@h/x.zip", "https://h:p/y"])
def test_an_address_with_a_password_is_refused_and_not_shown(url, tmp_path):
    text = BASE.replace("source: digits", "source: http\n  yolo: {names: [a]}\n  http: {format: yolo, url: 'URL'}")
    (tmp_path / "params.yaml").write_text(text.replace("URL", url), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data\.http\.url") as caught:
        params_module.load(tmp_path / "params.yaml")
    assert "p/w" not in str(caught.value) and "'p'" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://u:p@host/x", "gs://bucket/x", "s3:bucket", "file:///x"])
def test_states_are_copied_to_s3_or_a_folder(address, tmp_path):
    assert "state_remote: " in BASE
    text = re.sub(r'state_remote: "[^"]*"', f'state_remote: "{address}"', BASE)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"flow\.state_remote"):
        params_module.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(("old", "new"), [("source: digits", "source: LONG"), ("seed: 0", "seed: LONG")])
def test_a_long_value_is_not_repeated_whole(old, new, tmp_path):
    (tmp_path / "params.yaml").write_text(BASE.replace(old, new.replace("LONG", "x" * 5000)), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        params_module.load(tmp_path / "params.yaml")
    assert len(str(caught.value)) < 1500


def test_anchors_and_merges_of_honest_people_work():
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, y: [*a, *a]}").value["b"]["y"] == [{"x": 1}, {"x": 1}]


REVISIONS = ["--upload-pack=touch x", "-x", "", "a b", "a..b", "@{u}", "HEAD@{1}", ":/text", "HEAD:file", "a\0b", "a\n"]
REVISIONS += ["a^{/x}", "^a", "x" * 300, "a*", "a?", "a[b", "~1", "/a", "a//b", "a\\b", "a;b", "$(x)", None, 5]


@pytest.mark.parametrize("revision", REVISIONS, ids=ascii)
def test_a_revision_that_git_would_take_for_something_else_is_refused(revision):
    with pytest.raises(ConfigError, match=r"^revision: .* is not a commit, a branch or a tag$"):
        check_revision(revision, where="revision")


@pytest.mark.parametrize("revision", ["HEAD", "main", "v1.2", "feature/x-1", "a@b", "HEAD~2", "HEAD^", "d219dff" * 5])
def test_revisions_as_people_write_them_are_accepted(revision):
    check_revision(revision, where="revision")


GOOD = "0123456789abcdef0123456789abcdef"
HASHES = [
    {"--cprofile-dump=x": {"data/ingested": f"{GOOD}.dir"}},
    {"ingest": {"../x": GOOD}},
    {"ingest": {"/etc/x": GOOD}},
    {"ingest": {"-x": GOOD}},
    {"ingest": {"data/../../x": GOOD}},
    {"ingest": {"data\n": GOOD}},
    {"ingest": {"data/.git": GOOD}},
    {"ingest": {"data": "../../x"}},
    {"ingest": {"data": f"{GOOD}/x"}},
    {"ingest": {"data": GOOD.upper()}},
    {"ingest": {"data": 5}},
    {"ingest": {5: GOOD}},
    {"ingest": []},
    {"ingest": {}},
    {},
    [],
]


@pytest.mark.parametrize("hashes", HASHES, ids=repr)
def test_hashes_are_of_the_stages_and_inside_the_project(hashes):
    with pytest.raises(ConfigError, match=r"^data"):
        check_hashes(hashes, ("ingest", "validate"), where="data")


def test_a_stage_is_told_its_variant_by_params_and_not_by_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(BASE)

    def reached(params: object, args: argparse.Namespace) -> None:
        pytest.fail("reached")

    assert command._run(reached, True, (), ["--variant", "x; touch y"]) == 2
    assert "not in params.yaml" in capsys.readouterr().err
