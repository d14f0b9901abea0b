"""Opus in WebM and Matroska, as browsers record it: the same samples as in Ogg, or one clear line.

The files are written here, element by element, around the packets of an Ogg Opus file.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile  # pyright: ignore[reportMissingTypeStubs]
from conftest import Sample

from ark_asr_onnx import AudioError, AudioWarning
from ark_asr_onnx.audio import containers, sources, webm

UNKNOWN = b"\x01" + b"\xff" * 7


def element(number: int, content: bytes, size: bytes | None = None) -> bytes:
    name = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return name + (size or (len(content) | 1 << 56).to_bytes(8, "big")) + content


def ogg_packets(data: bytes) -> list[bytes]:
    """The packets of an Ogg stream, its two headers included."""
    packets, at, part = list[bytes](), 0, b""
    while at < len(data):
        n = data[at + 26]
        sizes = data[at + 27 : at + 27 + n]
        at += 27 + n
        for size in sizes:
            part += data[at : at + size]
            at += size
            if size < 255:
                packets.append(part)
                part = b""
    return packets


def opus(waveform: np.ndarray) -> list[bytes]:
    data = io.BytesIO()
    soundfile.write(data, waveform, 48000, format="OGG", subtype="OPUS")
    return ogg_packets(data.getvalue())


def block(packets: list[bytes], lacing: int = 0, track: int = 1) -> bytes:
    head = bytes([0x80 | track]) + struct.pack(">hB", 0, 0x80 | lacing)
    if not lacing:
        return head + packets[0]
    sizes = [len(packet) for packet in packets]
    body = bytes([len(packets) - 1])
    if lacing == 2:
        body += b"".join(b"\xff" * (n // 255) + bytes([n % 255]) for n in sizes[:-1])
    if lacing == 6 and len(sizes) > 1:
        body += struct.pack(">H", 0x4000 | sizes[0])
        for a, b in itertools.pairwise(sizes[:-1]):
            body += struct.pack(">H", 0x4000 | b - a + 0x1FFF)
    return head + body + b"".join(packets)


def track_entry(head: bytes, codec: bytes = b"A_OPUS", *more: bytes, number: int = 1) -> bytes:
    content = element(0xD7, bytes([number])) + element(0x83, b"\x02") + element(0x86, codec)
    return element(0xAE, content + element(0x63A2, head) + b"".join(more))


def file(tracks: bytes, clusters: bytes, live: bool = False) -> bytes:
    size = UNKNOWN if live else None
    head = element(0x1A45DFA3, element(0x4282, b"webm"))
    info = element(0x1549A966, element(0x2AD7B1, b"\x0f\x42\x40"))
    content = info + element(0xEC, b"\0" * 9) + element(0x1654AE6B, tracks) + clusters
    return head + element(0x18538067, content, size)


def cluster(blocks: bytes, live: bool = False) -> bytes:
    return element(0x1F43B675, element(0xE7, b"\0") + blocks, UNKNOWN if live else None)


@pytest.fixture(scope="module")
def packets(samples: list[Sample]) -> list[bytes]:
    waveform = sources.read(samples[0].path)
    return opus(np.repeat(waveform, 3))


@pytest.fixture(scope="module")
def expected(packets: list[bytes]) -> np.ndarray:
    """What libsndfile decodes of the same packets."""
    head, _, *rest = packets
    return sources.read(file(track_entry(head), cluster(simple(rest))))


def simple(packets: list[bytes]) -> bytes:
    return b"".join(element(0xA3, block([packet])) for packet in packets)


def groups(packets: list[bytes]) -> bytes:
    return b"".join(element(0xA0, element(0xA1, block([packet]))) for packet in packets)


def test_a_recording_is_heard_to_its_end(packets: list[bytes], samples: list[Sample]) -> None:
    original = sources.read(samples[0].path)
    head, _, *rest = packets
    found = sources.read(file(track_entry(head), cluster(simple(rest))))
    assert 0 <= len(found) - len(original) < 16000 * 0.03  # the encoder fills its last packet
    a, b = found[: len(original)], original
    assert np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)) > 0.9


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("write", [simple, groups])
def test_every_way_of_writing_blocks_gives_the_same(
    packets: list[bytes], expected: np.ndarray, live: bool, write: object
) -> None:
    head, _, *rest = packets
    parts = [write(rest[i : i + 40]) for i in range(0, len(rest), 40)]  # pyright: ignore
    clusters = b"".join(cluster(part, live) for part in parts)
    np.testing.assert_array_equal(sources.read(file(track_entry(head), clusters, live)), expected)


@pytest.mark.parametrize("lacing", [2, 6])
def test_laced_packets(packets: list[bytes], expected: np.ndarray, lacing: int) -> None:
    head, _, *rest = packets
    blocks = (element(0xA3, block(rest[i : i + 5], lacing)) for i in range(0, len(rest), 5))
    found = sources.read(file(track_entry(head), cluster(b"".join(blocks))))
    np.testing.assert_array_equal(found, expected)


def test_equal_packets_laced() -> None:
    packets = [bytes([i]) * 7 for i in range(4)]
    assert webm._laced(bytes([3]) + b"".join(packets), 4) == packets


def test_other_tracks_are_passed_over(packets: list[bytes], expected: np.ndarray) -> None:
    head, _, *rest = packets
    blocks = b"".join(
        element(0xA3, block([b"video"], track=1)) + element(0xA3, block([packet], track=2))
        for packet in rest
    )
    tracks = track_entry(b"", b"V_VP8") + track_entry(head, number=2)
    np.testing.assert_array_equal(sources.read(file(tracks, cluster(blocks))), expected)


def test_padding_at_the_end_is_dropped(packets: list[bytes], expected: np.ndarray) -> None:
    head, _, *rest = packets
    padding = element(0x75A2, (10_000_000).to_bytes(4, "big"))
    last = element(0xA0, element(0xA1, block([rest[-1]])) + padding)
    found = sources.read(file(track_entry(head), cluster(simple(rest[:-1]) + last)))
    assert len(expected) - len(found) == 160


def test_parts_and_streams(packets: list[bytes]) -> None:
    head, _, *rest = packets
    data = file(track_entry(head), cluster(simple(rest)))
    found = sources.read(io.BytesIO(data), begin_seconds=0.5, end_seconds=1.0)
    assert abs(len(found) - 8000) <= 1
    assert sources.duration(data) is None  # it would have to be read first


@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_what_was_cut_off_is_heard_and_told(packets: list[bytes], share: float) -> None:
    head, _, *rest = packets
    data = file(track_entry(head), cluster(simple(rest), live=True), live=True)
    with pytest.warns(UserWarning, match="audio bytes: cut off: its end is missing"):
        found = sources.read(data[: round(share * len(data))])
    assert len(found) == pytest.approx(share * len(rest) * 320, rel=0.2)


def test_what_ends_between_two_elements_was_cut_off_too(packets: list[bytes]) -> None:
    head, _, *rest = packets
    data = file(track_entry(head), cluster(simple(rest[:50])) + cluster(simple(rest[50:])))
    at = data.index(b"\x1f\x43\xb6\x75", data.index(b"\x1f\x43\xb6\x75") + 1)  # the second
    told: list[AudioWarning] = []
    found = sources.read(data[:at], on_warning=told.append)
    assert len(found) == pytest.approx(50 * 320, abs=320)
    assert [warning.kind for warning in told] == ["cut"]


def test_what_follows_a_recording_is_said_or_heard(packets: list[bytes]) -> None:
    head, _, *rest = packets
    data = file(track_entry(head), cluster(simple(rest)))
    whole = sources.read(data)
    for tail, kinds in ((bytes(3000), ["unused"]), (data, ["joined"])):
        told: list[AudioWarning] = []
        found = sources.read(data + tail, on_warning=told.append)
        assert [warning.kind for warning in told] == kinds
        assert len(found) == pytest.approx(len(whole) * (1 + (tail == data)), abs=640)


@pytest.mark.parametrize(
    ("tracks", "message"),
    [
        (track_entry(b"x", b"A_VORBIS"), r"without Opus \(its tracks are A_VORBIS\)"),
        (b"", r"without Opus \(it has no tracks\)"),
        (track_entry(b"OpusHead" + bytes(11), b"A_OPUS", element(0x6D80, b"")), "encrypted"),
    ],
)
def test_what_cannot_be_repacked_is_one_line(
    tracks: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "has_media", lambda: False)
    with pytest.raises(AudioError, match=message) as error:
        sources.read(file(tracks, cluster(b"")))
    assert "\n" not in str(error.value)


def test_every_damage_is_an_error_of_ours_or_audio(packets: list[bytes]) -> None:
    head, _, *rest = packets
    data = file(track_entry(head), cluster(simple(rest[:30])))
    random = np.random.default_rng(5)
    for _ in range(300):
        broken = bytearray(data)
        for at in random.integers(0, len(data), 3):
            broken[at] = random.integers(256)
        for page in pages(bytes(broken[: random.integers(40, len(data) + 1)])):
            assert page.startswith(b"OggS")


@pytest.mark.parametrize("size", [65_024, 65_025, 65_026, 1_000_000])
def test_packets_that_fit_no_page_are_damage(packets: list[bytes], size: int) -> None:
    head, _, first, *_ = packets
    for tracks, blocks in (
        (track_entry(head), simple([first, first[:1] + bytes(size - 1)])),
        (track_entry(head + bytes(size - len(head))), simple([first])),
    ):
        list(pages(file(tracks, cluster(blocks))))  # pages, or one clear line


@pytest.mark.parametrize(
    "tracks", [b"\xae\x80" * 600_000, track_entry(b"", b"A_\r\n" + b"\xff" * 900_000) * 20]
)
def test_tracks_without_end_take_no_memory(tracks: bytes) -> None:
    data = file(tracks, cluster(b""))
    tracemalloc.start()
    try:
        with pytest.raises(AudioError, match="without Opus") as error:
            list(webm.to_ogg(io.BytesIO(data), "x", print))
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held < 4_000_000
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def pages(data: bytes) -> Iterator[bytes]:
    with contextlib.suppress(AudioError):
        yield from webm.to_ogg(io.BytesIO(data), "x", lambda _: None)


def test_what_needs_the_extra_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "has_media", lambda: False)
    for head in (b"\0\0\0\x18ftypM4A ", b"\xff\xf1\x50\x80", b"\xff\xf9\x50\x80"):
        path = tmp_path / "recording.wav"
        path.write_bytes(head + bytes(100))
        with pytest.raises(AudioError, match=r"install 'ark-asr-onnx\[media\]'"):
            sources.read(path)


def write_aac(path: Path, waveform: np.ndarray, kind: str) -> None:
    """AAC in a container, as telephones record it; skips the test without the extra ``media``."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        frames = av.AudioFifo()
        frames.write(frame)
        while (part := frames.read(1024, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def test_other_containers_through_the_extra(tmp_path: Path, samples: list[Sample]) -> None:
    original = sources.read(samples[0].path)
    for name, kind in (("mp4", "ipod"), ("aac", "adts"), ("mka", "matroska")):
        path = tmp_path / f"{name}.wav"  # whatever its name is
        write_aac(path, original, kind)
        found = sources.read(path)
        assert abs(len(found) - len(original)) < 16000 * 0.2
        part = sources.read(path.read_bytes(), begin_seconds=0.5, end_seconds=1.0)
        assert abs(len(part) - 8000) <= 1
    with pytest.raises(AudioError):
        sources.read(b"\0\0\0\x18ftypM4A " + bytes(1000))


def test_audio_that_looks_like_a_container_is_left_to_libsndfile() -> None:
    for head in (b"RIFF....WAVE", b"fLaC", b"OggS", b"ID3", b"\xff\xfb\x90\x00", b"\xff\xf3\x40"):
        assert containers.kind(io.BytesIO(head + bytes(20))) is None
