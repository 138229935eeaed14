"""Sources: images are read in order, a missing source gives one line, a bad image does not stop the others."""

from __future__ import annotations

import os
import re
import socket
import threading

import cv2
import numpy as np
import pytest

from yolov7.data.depth import PixelRange
from yolov7.errors import DataError
from yolov7.predict.sources import Source, open_source


def write(path, value=100, size=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))
    return path


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(["b.png", "a.jpg", "deep/er/c.bmp", "deep/d.JPG"]):
        write(tmp_path / name.lower(), 10 * number)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def names(source):
    return [frame.name for frame in source.frames()]


def test_a_folder_is_searched_to_the_bottom_in_order(folder):
    source = open_source(folder)
    assert len(source) == 4
    assert names(source) == ["a.jpg", "b.png", "deep/d.jpg", "deep/er/c.bmp"]
    assert names(open_source(folder, exclude=[folder / "deep" / "er"])) == ["a.jpg", "b.png", "deep/d.jpg"]


def test_an_image_and_a_pattern(folder):
    (frame,) = open_source(folder / "b.png").frames()
    assert frame.name == "b.png" and frame.image.shape == (20, 30, 3) and frame.image.dtype == np.uint8
    assert names(open_source(str(folder / "*.*g"))) == ["a.jpg", "b.png"]
    assert names(open_source(str(folder / "**" / "*.*"))) == ["a.jpg", "b.png", "deep/d.jpg", "deep/er/c.bmp"]


def test_colours_are_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((4, 4, 3), (0, 0, 255), np.uint8))  # OpenCV writes BGR
    (frame,) = open_source(tmp_path / "red.png").frames()
    assert frame.image[0, 0].tolist() == [255, 0, 0]


def test_a_bad_image_is_reported_and_the_others_are_read(folder):
    content = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(content[: len(content) // 2])
    errors = []
    assert [frame.name for frame in open_source(folder).frames(errors.append)] == names_without_a(folder)
    assert len(errors) == 1 and str(errors[0]).startswith(str(folder / "a.jpg"))
    with pytest.raises(DataError, match="truncated"):
        list(open_source(folder).frames())


def names_without_a(folder):
    return ["b.png", "deep/d.jpg", "deep/er/c.bmp"]


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "my clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(5):
        writer.write(np.full((48, 64, 3), (0, 0, 50 * number), np.uint8))
    writer.release()
    return path


def test_frames_of_a_video(video):
    frames = list(open_source(video).frames())
    assert [frame.name for frame in frames] == [f"my_clip.avi/{number:06d}.jpg" for number in range(5)]
    reds = [int(frame.image[20, 20, 0]) for frame in frames]
    assert all(abs(red - 50 * number) < 12 for number, red in enumerate(reds))
    assert all(int(frame.image[20, 20, 2]) < 12 for frame in frames)


def test_a_video_that_is_cut_gives_its_frames_and_says_so(video, tmp_path):
    cut = tmp_path / "cut.avi"
    content = video.read_bytes()
    place = [match.start() for match in re.finditer(b"00dc", content)][3]  # the third frame; the first is in the head
    cut.write_bytes(content[:place])
    frames = []
    with pytest.raises(DataError, match="ends after 2 of 5 frames: cut off") as caught:
        frames.extend(open_source(cut).frames())
    assert str(cut) in str(caught.value)
    frames = open_source(cut).frames()
    assert [next(frames).name, next(frames).name] == ["cut.avi/000000.jpg", "cut.avi/000001.jpg"]


def test_a_live_stream_that_stops_is_an_error(tmp_path):
    video = cv2.VideoWriter(str(tmp_path / "live.ts"), cv2.VideoWriter_fourcc(*"MPG2"), 25, (64, 64))
    assert video.isOpened()
    for value in range(10):
        video.write(np.full((64, 64, 3), 20 * value, np.uint8))
    video.release()
    sent = (tmp_path / "live.ts").read_bytes()

    def send():
        connection, _ = server.accept()
        with connection:
            connection.sendall(sent)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=send)
        thread.start()
        frames = open_source(f"tcp://127.0.0.1:{server.getsockname()[1]}").frames()
        seen = []
        with pytest.raises(DataError, match=r"stopped after \d+ frames"):
            for frame in frames:
                seen.append(frame.name)
        thread.join()
    assert len(seen) > 5


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.jpg", "no such image, folder or video"),
        ("missing/*.jpg", "no images there"),
        ("empty", "no images there"),
        ("broken.mp4", "not readable as a video"),
        ("rtsp://127.0.0.1:9/stream", "the stream does not answer"),
        ("http://127.0.0.1:9/a.mp4", "the stream does not answer"),
        ("99", "no such camera"),
    ],
)
def test_a_missing_source_gives_one_line(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    with pytest.raises(DataError, match=message) as caught:
        list(open_source(source).frames())
    assert "\n" not in str(caught.value)
    assert source in str(caught.value)


@pytest.mark.parametrize(
    ("address", "told", "stem"),
    [
        ("rtsp://cam/", "rtsp://cam/", "stream"),
        ("http://host/..", "http://host/..", "stream"),
        ("http://host/.hidden/", "http://host/.hidden/", "stream"),
        ("rtsp://cam", "rtsp://cam", "cam"),
        ("rtsp://user:pass@cam:554/live", "rtsp://cam:554/live", "live"),
        ("rtsp://user:pass@cam", "rtsp://cam", "cam"),
        ("rtsp://user:p@ss#w?rd@cam/live", "rtsp://cam/live", "live"),
        ("rtsp://user:pa/ss@cam/live", "rtsp://cam/live", "live"),
        ("http://host/@street/live.m3u8?token=secret#x", "http://host/@street/live.m3u8", "live.m3u8"),
        ("http://host?token=secret", "http://host", "host"),
        ("rtsp://[::1]:554/a%20b", "rtsp://[::1]:554/a%20b", "a_20b"),
    ],
)
def test_an_address_reveals_no_secret_and_leads_nowhere(address, told, stem):
    source = open_source(address)
    assert (source.name, source.stem, source.video) == (told, stem, address)


def test_no_error_of_a_stream_reveals_its_password():
    with pytest.raises(DataError, match=r"^rtsp://127\.0\.0\.1:9/live: the stream does not answer") as caught:
        list(open_source("rtsp://user:secret@127.0.0.1:9/live?key=secret").frames())
    assert "secret" not in str(caught.value)


def test_a_video_has_a_plain_folder_name(tmp_path):
    assert Source(str(tmp_path / "..mp4"), video="x").stem == "mp4"
    assert Source("camera 0", video=0).stem == "camera0"


def test_a_source_inside_the_output_is_not_left_out(folder):
    for out in (folder, folder.parent):
        assert len(open_source(folder, exclude=[out])) == 4


@pytest.fixture
def clip(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 64))
    for _ in range(3):
        writer.write(np.full((64, 64, 3), 90, np.uint8))
    writer.release()
    return (tmp_path / "v.mp4").read_bytes()


@pytest.mark.parametrize(
    "name", ["12:30:05.mp4", "C:\\x.mp4", "http:x.mp4", "without", "clip.jpg", "%03d.mp4", "-v.mp4", "http:/host/v.mp4",
             "rtsp:/cam/live", "concat:a|b.mp4", "new\nline.mov", "a[1]*?.webm", "0",
             os.fsdecode("视频.mp4".encode("gbk")), os.fsdecode(b"\xff/v.mp4")],
)  # fmt: skip
def test_a_video_is_one_by_its_content_and_a_path_that_exists_is_a_path(tmp_path, monkeypatch, clip, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(clip)
    typed = name.replace(":/", "://") if ":/" in name else name
    frames = list(open_source(typed).frames())
    assert len(frames) == 3
    frames[0].name.encode()  # fit for records


@pytest.mark.parametrize("name", ["b[1]", "C:\\x", "http:", "7", "12:30", "a*", "rtsp:"])
def test_a_folder_is_one_whatever_it_is_called(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name / "i.jpg")
    assert names(open_source(name)) == ["i.jpg"]
    assert names(open_source(f"{name}/*.jpg")) == ["i.jpg"]


LISTS = {
    "cat.mp4": "ffconcat version 1.0\nfile v.mp4\n", "marked.mov": "\ufeffffconcat version 1.0\nfile v.mp4\n",
    "live.mkv": "#EXTM3U\n#EXTINF:1,\nv.mp4\n", "call.avi": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\n",
    "dash.webm": "<?xml version='1.0'?>\n<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'/>",
    "x.txt": "ffconcat version 1.0\n",
    "without": "#EXTM3U\nv.mp4\n", "p.pls": "[playlist]\nFile1=v.mp4\n", "a.asx": "<asx version='3'/>",
    "m.m3u": "v.mp4\n",
    "s.xspf": "<?xml version='1.0'?><playlist version='1'/>", "names.mp4": "v.mp4\n",
    "sub.mpg": "# VobSub index file, v7\n",
    "image.jpg": "ffconcat version 1.0\nfile v.mp4\n",
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_opens_other_files_is_no_video(tmp_path, clip, name):
    (tmp_path / "v.mp4").write_bytes(clip)
    (tmp_path / name).write_text(LISTS[name])
    with pytest.raises(DataError, match=r"not a video but a playlist|not readable as a video"):
        list(open_source(tmp_path / name).frames())


def test_images_of_a_folder_are_told_by_content(tmp_path, clip):
    suffixes = {"a.jfif": ".jpg", "b.avif": ".avif", "c.gif": ".gif", "d": ".png", "cam.0001": ".jpg", "E.JP2": ".jp2"}
    for name, suffix in {**suffixes, "f.dat": ".webp", "g.ras": ".ras", "h.pgm": ".ppm"}.items():
        (tmp_path / name).write_bytes(cv2.imencode(suffix, np.full((64, 64, 3), 90, np.uint8))[1].tobytes())
    junk = {
        "._a.jpg": b"\0\5\x16\7",
        ".DS_Store": b"\0\0\0\1Bud1",
        "Thumbs.db": b"\xd0\xcf",
        "x.txt": b"BMW",
        "v.mov": clip,
    }
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    for name, content in {**junk, "v.mov": clip, "phone.jpg": heic, "phone.heic": heic, "text.jpg": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
    source, errors = open_source(tmp_path), []
    found = [frame.name for frame in source.frames(errors.append)]
    assert found == ["E.JP2", "a.jfif", "b.avif", "c.gif", "cam.0001", "d", "f.dat", "g.ras", "h.pgm"]
    told = sorted(str(error).removeprefix(f"{tmp_path}/") for error in errors)
    assert [line.partition(":")[0] for line in told] == ["phone.heic", "phone.jpg", "text.jpg"]
    assert "HEIC is not read here; convert it" in told[0] and "HEIC is not read here; convert it" in told[1]
    assert source.left_out == ("2 videos were left out, 'v.mov' among them: give each by its name",)


def test_deep_images_are_scaled_and_dark_ones_noticed(tmp_path):
    ramp = np.linspace(0, 4095, 400).reshape(20, 20).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "x.png"), ramp)
    cv2.imwrite(str(tmp_path / "y.tiff"), ramp.astype(np.float32))
    notes, errors = [], []
    assert [frame.name for frame in open_source(tmp_path).frames(errors.append, notes.append)] == ["x.png"]
    assert "1 images have more than 8 bits a channel and are nearly black" in notes[0] and "--pixel-range" in notes[0]
    assert "holds values from 0 to 4095" in str(errors[0]) and "--pixel-range LOW HIGH" in str(errors[0])
    frames = list(open_source(tmp_path, pixel_range=PixelRange(0, 4095)).frames(None, notes.append))
    assert [int(frame.image.max()) for frame in frames] == [255, 255] and len(notes) == 1
