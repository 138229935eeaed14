"""Hostile checkpoints: each ends in a ModelError within seconds, and nothing in them is run."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import time
import zipfile

import pytest
import torch

from tests.unit.yolov7.model.test_published import archive, saved
from yolov7.errors import ModelError
from yolov7.model.published import reader, unpickle
from yolov7.model.published.load import read_published
from yolov7.model.published.reader import read_checkpoint

SECONDS = 30
"""A generous bound: a process may use three seconds of processor time, but this machine has other work."""


def number(value):
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def tensor(key="0", offset=0, shape=(4,), stride=(1,)):
    """A pickled tensor of float32 in storage `key`."""
    sides, steps = (b"(" + b"".join(map(number, values)) + b"t" for values in (shape, stride))
    storage = b"(Vstorage\nctorch\nFloatStorage\nV" + key.encode() + b"\nVcpu\n" + number(4) + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + sides + steps + b"\x89NtR"


def refusal(path):
    start = time.perf_counter()
    with pytest.raises(ModelError, match=str(path)) as caught:
        read_published(path)
    assert time.perf_counter() - start < SECONDS and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_key_whose_hash_takes_for_ever_is_stopped(tmp_path):
    # Tuples of tuples, shared by memo: 10**14 of them to hash, in under 1 kB.
    content = b"\x80\x02)q\x00" + (b"(" + b"h\x00" * 10 + b"tq\x00") * 14 + b"0}h\x00Ns."
    path = archive(tmp_path / "s2.pt", content)
    assert path.stat().st_size < 1000
    assert "far more than a checkpoint needs" in refusal(path)


def test_a_process_that_does_not_end_is_ended(tmp_path, monkeypatch):
    script = tmp_path / "sleep.py"
    script.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(unpickle, "__file__", str(script))
    monkeypatch.setattr(reader, "WALL_SECONDS", 0.5)
    assert "not read within 0.5 s" in refusal(archive(tmp_path / "x", b"N."))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "more than 1024 MiB"),  # BINBYTES8 of a terabyte
        (b"\x80\x03B" + struct.pack("<I", 2**31 - 1) + b"x.", "more than 1024 MiB"),  # BINBYTES of 2 GiB
        (b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".", "more than 1024 MiB"),  # a memo of 64 GiB
        (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.", "truncated"),  # LONG4
        (b"\x80\x02I" + b"9" * 100_000 + b"\n.", "damaged"),  # an integer in decimal digits
        (b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"N.", "damaged"),  # FRAME
        (b"\x80\x02\x82\x01.", "damaged"),  # an extension code
        # tuples a million deep, as a key: the hash recurses in C
        (b"\x80\x02)" + b"\x85" * 1_000_000 + b"q\x000}h\x00Ns.", "cannot be read"),
        (b"\x80\x02cposix\nsystem\nX\x05\x00\x00\x00touch\x85R.", "refused: it asks for posix.system"),
        (b"\x80\x02c__builtin__\nbytearray\n" + number(2**31 - 1) + b"\x85R.", "refused: it asks for __builtin__.byte"),
        (b"\x80\x02ctorch\nload\n.", "refused: it asks for torch.load"),
        (b"\x80\x02cmodels_of_mine\nModel\n.", "refused: it asks for models_of_mine.Model"),
        (b"\x80\x02}V\\u000aname\n" + tensor() + b"s.", "not the name of a tensor"),
        (b"\x80\x02}Vw\n" + tensor(shape=(1,) * 65, stride=(1,) * 65) + b"s.", "not well formed"),
        (b"\x80\x02}Vw\n" + tensor("../byteorder") + b"s.", "is missing"),
    ],
)
def test_pickles_that_ask_for_too_much(tmp_path, content, message):
    assert message in refusal(archive(tmp_path / "x", content, data={"0": bytes(16)}))


@pytest.mark.parametrize(
    ("shape", "stride", "message"),
    [
        ((0, 2**62), (1, 1), "sides are too large"),
        ((2**31, 2**31, 0), (1, 1, 1), "sides are too large"),
        ((0, 2**70), (1, 1), "sides are too large"),
        ((1,), (2**62,), "strides are too large"),
        ((1, 4), (2**70, 1), "strides are too large"),
    ],
)
def test_sides_and_strides_that_no_element_needs(tmp_path, shape, stride, message):
    content = b"\x80\x02}(Vw\n" + tensor(shape=shape, stride=stride) + b"u."
    assert message in refusal(archive(tmp_path / "x.pt", content, data={"0": bytes(16)}))


def test_lists_that_double_do_not_unfold(tmp_path):
    doubled = b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(200))
    assert "a list is pickled in it" in refusal(archive(tmp_path / "x", b"\x80\x02]q\x00" + doubled + b"."))


def test_tensors_that_share_their_bytes_do_not_unfold(tmp_path):
    data = {"0": bytes(4_000_000)}

    def named(count, **arguments):
        items = b"".join(b"Vw%d\n" % i + tensor(**arguments) for i in range(count))
        return archive(tmp_path / "x", b"\x80\x02}(" + items + b"u.", data=data)

    assert "claim more bytes than the file has" in refusal(named(100, shape=(1_000_000,)))
    views = read_published(named(100, offset=7, shape=(10,))).tensors
    assert len(views) == 100 and all(view.untyped_storage().nbytes() == 40 for view in views.values())


def test_members_that_overlap_do_not_unfold(tmp_path):
    """Central directory entries that all point at the same bytes."""
    content = b"\x80\x02}(" + b"".join(b"Vw%d\n" % i + tensor(str(i)) for i in range(100)) + b"u."
    path = archive(tmp_path / "x", content, data={str(i): bytes(4_000_000 if i == 0 else 16) for i in range(100)})
    with zipfile.ZipFile(path, "a") as file:
        large = file.getinfo("archive/data/0")
        for i in range(1, 100):
            info = file.getinfo(f"archive/data/{i}")
            info.header_offset, info.CRC = large.header_offset, large.CRC
            info.file_size = info.compress_size = large.file_size
        file.comment = b"written again"
    assert "claim more bytes than the file has" in refusal(path)


@pytest.mark.parametrize("member", ["data.pkl", "byteorder", "data/0"])
def test_compressed_members_are_refused(tmp_path, member):
    path = tmp_path / "x"
    contents = {"data.pkl": b"\x80\x02}Vw\n" + tensor() + b"s.", "byteorder": b"little", "data/0": bytes(10_000_000)}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in contents.items():
            file.writestr(f"archive/{name}", data, zipfile.ZIP_DEFLATED if name == member else zipfile.ZIP_STORED)
    assert f"'archive/{member}' is compressed" in refusal(path)


def test_a_pickle_of_more_than_256_mb_is_refused(tmp_path):
    path = tmp_path / "x"
    with zipfile.ZipFile(path, "w") as file, file.open("archive/data.pkl", "w", force_zip64=True) as member:
        for _ in range(257):
            member.write(bytes(2**20))
    assert "data.pkl is too large" in refusal(path)


def test_damaged_archives_are_model_errors(tmp_path):
    """Every kind of damage: bytes changed, cut off or repeated, headers and directory included."""
    source = io.BytesIO()
    torch.save({"model": {"w": torch.arange(300.0), "b": torch.ones(3, dtype=torch.half)}}, source)
    whole, chance, path = source.getvalue(), random.Random(0), tmp_path / "x"
    read = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(len(data))] = chance.choice((0, 255, chance.randrange(256)))
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            described = unpickle.describe(str(path), ("models",))
            values = reader._tensors(path, described["tensors"])
        except (unpickle.RefusedError, ModelError):
            continue
        assert "".join(values) in ("wb", "w", "b")
        read += 1
    assert 0 < read < 300  # changes to padding and to unused header fields do no harm


def test_the_script_needs_nothing_but_python(training_tensor):
    """It runs with no packages at all, so a foreign file meets none of their code."""
    code = f"import sys; sys.argv = ['x', {str(training_tensor)!r}]; import runpy\n"
    code += f"runpy.run_path({unpickle.__file__!r}, run_name='script')\n"
    code += "print(sorted(name for name in sys.modules if name.split('.')[0] in ('torch', 'numpy', 'yolov7')))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def training_tensor(tmp_path):
    return saved(tmp_path / "t.pt", {"model": {"w": torch.arange(3.0)}})


def test_every_element_type_is_read(tmp_path):
    tensors = {
        str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in (getattr(torch, n) for n in unpickle.ITEM_SIZE)
    }
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(5), "turned": torch.arange(6).reshape(2, 3).T}
    found = read_checkpoint(saved(tmp_path / "x", {"ema": tensors, "model": None})).tensors
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype and found[name].is_contiguous()
