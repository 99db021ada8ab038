"""Clips: what is read and written, what is refused, and that a face is followed without jitter."""

import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cest import video
from cest.configuration import FaceEstimatorConfig
from cest.cropping import LANDMARK_BOX_TO_CROP, SquareCrop
from cest.detection import EMBEDDED, DetectedFace, FaceDetector
from cest.face_model import FaceModel
from cest.geometry import ambient_illumination
from cest.modeling import FaceEstimator, FaceParameters
from cest.reconstruction import Reconstructor
from cest.released import released_checkpoint
from cest.video import VideoError, open_clip, reconstruct_clip, track, write_video

pytest.importorskip("av")
ASTRONAUT = Path(video.__file__).parent / "assets" / "astronaut.jpg"


def encode(path: Path, frames: list[np.ndarray], rate: float = 25.0) -> Path:
    for _ in write_video(path, frames, rate):
        pass
    return path


def grey(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    return [np.full((*size, 3), 20 + 8 * i, np.uint8) for i in range(count)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    clip = open_clip(encode(tmp_path / "a.mp4", grey(12)))
    assert (clip.rate, clip.expected, clip.size) == (25.0, 12, (64, 48))
    for _ in range(2):  # again and again
        levels = [frame.mean() for frame in clip]
        assert levels == pytest.approx([20 + 8 * i for i in range(12)], abs=3)


def test_colours_are_those_that_were_written(tmp_path: Path) -> None:
    (frame,) = open_clip(
        encode(tmp_path / "a.mp4", [np.full((64, 64, 3), (200, 60, 20), np.uint8)])
    )
    assert np.abs(frame.reshape(-1, 3).mean(0) - (200, 60, 20)).max() < 8


def test_fast_and_large_clips_are_thinned_out(tmp_path: Path) -> None:
    clip = open_clip(encode(tmp_path / "a.mp4", grey(20, (120, 200)), 60.0), long_side=100)
    frames = list(clip)
    assert (clip.rate, len(frames), frames[0].shape) == (30.0, 10, (60, 100, 3))


def test_only_so_much_is_read_whatever_the_file_says(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", grey(12))
    with pytest.raises(VideoError, match=r"a\.mp4 lasts 0 seconds; cut it to at most"):
        open_clip(path, max_seconds=-0.1)
    assert len(list(open_clip(path, max_seconds=0.2))) == 5


def encode_unevenly(path: Path, milliseconds: list[int]) -> Path:
    """A frame at each of these times, as browsers and telephones record."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame, time in zip(grey(len(milliseconds)), milliseconds):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def test_uneven_frames_make_a_clip_no_longer(tmp_path: Path) -> None:
    """OpenCV says of such a file that it has 1000 frames a second, and counts milliseconds."""
    path = encode_unevenly(tmp_path / "a.mkv", [100 * i + 7 * (i % 3) for i in range(21)])
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    assert capture.get(cv2.CAP_PROP_FPS) == 1000
    clip = open_clip(path, max_seconds=3)
    assert (clip.rate, clip.frames, len(list(clip))) == (30.0, 90, 21)
    assert clip.expected == pytest.approx(2 * 30, abs=2)
    with pytest.raises(VideoError, match=r"a\.mkv lasts 2 seconds; cut it to at most 1"):
        open_clip(path, max_seconds=1)


@pytest.mark.parametrize("content", [b"", b"Dear diary", ASTRONAUT.read_bytes()[:100]])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"clip\.mp4 (is not a video|has no pictures)"):
        open_clip(path)


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
@pytest.mark.parametrize("kind", ["hls", "ffconcat"])
def test_a_playlist_does_not_open_what_it_names(tmp_path: Path, name: str, kind: str) -> None:
    clip = encode(tmp_path / "clip.mp4", grey(5))
    content = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n",
        "ffconcat": "ffconcat version 1.0\nfile clip.mp4\n",
    }[kind]
    (tmp_path / name).write_text(content)
    with pytest.raises(VideoError, match="is not a video"):
        open_clip(tmp_path / name)


def test_a_clip_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    whole = encode(
        tmp_path / "a.mp4",
        [
            np.random.default_rng(i).integers(0, 255, (64, 64, 3)).astype(np.uint8)
            for i in range(12)
        ],
    )
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert 0 < len(list(open_clip(path))) < 12


def test_huge_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", grey(2))
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match="frames of 64 x 48 pixels"):
        open_clip(path)


def test_a_video_that_is_not_finished_is_removed(tmp_path: Path) -> None:
    work = write_video(tmp_path / "a.mp4", grey(5), 25.0)
    next(work)
    work.close()
    assert not list(tmp_path.iterdir())


class Sometimes:
    """Finds a face in the middle, but not in dark frames."""

    def detect(self, photo: np.ndarray) -> list[DetectedFace]:
        if photo.mean() < 50:
            return []
        height, width = photo.shape[:2]
        crop = SquareCrop(width / 2, height / 2, 0.9 * height)
        return [DetectedFace((0, 0, width, height), 1.0, crop)]


def pixels_of(crop: SquareCrop, parameters: FaceParameters) -> float:
    """Of a face, about: the share of it that is seen, on a face of its size."""
    scale = crop.size * float(parameters.viewpoint[0, 0].exp())
    return float(parameters.texture_visibility.mean()) * scale**2


def test_one_reflectance_for_all_and_frames_without_a_face(
    face_model: FaceModel, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = FaceEstimatorConfig(image_size=64, width=0.125)
    reconstructor = Reconstructor(FaceEstimator(config, face_model), Sometimes(), "cpu", "CEST")
    clip = open_clip(encode(tmp_path / "a.mp4", grey(10, (80, 80))))
    output, finished = tmp_path / "out.mp4", []
    steps = reconstruct_clip(clip, reconstructor, output, lambda _: ambient_illumination())

    def finish() -> Iterator[float]:
        face = yield from steps
        finished.append(face)

    told = list(finish())
    assert told == sorted(told) and told[-1] == 1
    (face,) = finished
    estimates, template = face.estimates, face.template
    assert [estimate is None for estimate in estimates][:4] == [True] * 4
    assert all(estimates[4:])

    said = [one for one in track(clip, reconstructor) if one is not None]
    weights = [p.texture_visibility + video.UNSEEN_WEIGHT for _, p in said]
    mean = sum(w * p.reflectance_map for w, (_, p) in zip(weights, said)) / sum(weights)
    torch.testing.assert_close(template.parameters.reflectance_map, mean)
    # The fine detail is that of the frame which shows most of the face.
    frames, found = list(clip), list(track(clip, reconstructor))
    seen = [0.0 if one is None else pixels_of(*one) for one in found]
    clearest = seen.index(max(seen))
    assert torch.equal(
        template.detail, reconstructor.assemble(frames[clearest], *found[clearest]).detail
    )

    result = open_clip(output, long_side=10_000)
    assert result.size == (240, 104) and len(list(result)) == 10

    records = list(face.describe(clip.rate))
    assert [record["frame"] for record in records] == list(range(10))
    assert records[9]["seconds"] == 9 / 25
    assert [record["face"] is None for record in records] == [one is None for one in estimates]
    (crop, parameters), record = found[9], records[9]["face"]
    assert record["crop"]["center_x"] == crop.center_x
    assert record["viewpoint"]["rotation"] == parameters.viewpoint[0, 1:4].tolist()
    own = reconstructor.assemble(frames[9], crop, parameters)
    np.testing.assert_allclose(record["landmarks_68"], own.landmarks_photo, atol=1e-3)
    assert record["illumination"] == pytest.approx(own.illumination.tolist())


def test_without_pyav_nothing_is_begun(
    face_model: FaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FaceEstimatorConfig(image_size=64, width=0.125)
    reconstructor = Reconstructor(FaceEstimator(config, face_model), Sometimes(), "cpu")
    clip = open_clip(encode(tmp_path / "a.mp4", grey(3)))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match="pip install av"):
        next(reconstruct_clip(clip, reconstructor, tmp_path / "o.mp4", lambda _: None))


def test_no_face_at_all(face_model: FaceModel, tmp_path: Path) -> None:
    config = FaceEstimatorConfig(image_size=64, width=0.125)
    reconstructor = Reconstructor(FaceEstimator(config, face_model), Sometimes(), "cpu")
    clip = open_clip(encode(tmp_path / "dark.mp4", grey(3)))
    with pytest.raises(VideoError, match=r"No face was found in .*dark\.mp4"):
        list(reconstruct_clip(clip, reconstructor, tmp_path / "o.mp4", lambda _: None))
    assert not (tmp_path / "o.mp4").exists()


def moving(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The astronaut before a camera that rolls, shifts and zooms: frames and where it looks."""
    photo = np.asarray(Image.open(ASTRONAUT))
    for i in range(count):
        roll, zoom = 7 * np.sin(i / 4), 1.3 + 0.1 * np.sin(i / 5)
        matrix = cv2.getRotationMatrix2D((225, 110), roll, zoom)
        matrix[:, 2] += (30 * np.sin(i / 6) + 20, 90)
        yield (
            cv2.warpAffine(photo, matrix, (480, 480), borderMode=cv2.BORDER_REPLICATE),
            matrix,
        )


def test_a_followed_face_does_not_jitter() -> None:
    """Landmarks, taken back into the still photo, stay within half a percent of the face."""
    reconstructor = Reconstructor.from_pretrained(
        released_checkpoint("cest"), FaceDetector(EMBEDDED), "cpu"
    )
    points = []
    for (frame, matrix), (crop, parameters) in zip(
        moving(16), track((frame for frame, _ in moving(16)), reconstructor)
    ):
        back = cv2.invertAffineTransform(matrix)
        found = reconstructor.assemble(frame, crop, parameters).landmarks_photo
        points.append(found @ back[:, :2].T + back[:, 2])
    points = np.array(points)
    face = np.ptp(points[0], axis=0).max()
    assert 80 < face < 110
    assert points.std(0).mean() < 0.005 * face


class Blobs:
    """Finds white squares, however the picture is scaled; what else there is it misses."""

    def detect(self, photo: np.ndarray) -> list[DetectedFace]:
        white = (photo[..., 0] > 200).view(np.uint8)
        _, _, found, centers = cv2.connectedComponentsWithStats(white)
        faces = []
        for (left, top, width, height, _), (x, y) in zip(found[1:], centers[1:]):
            crop = SquareCrop(x + 0.5, y + 0.5, LANDMARK_BOX_TO_CROP * width)
            faces.append(DetectedFace((left, top, left + width, top + height), 1.0, crop))
        return sorted(faces, key=lambda face: -face.crop.size)


def scene(*squares: tuple[float, float, int], level: int = 255) -> np.ndarray:
    """(240, 320, 3): squares, each by its middle and side."""
    frame = np.zeros((240, 320, 3), np.uint8)
    for x, y, side in squares:
        left, top = round(x - side / 2), round(y - side / 2)
        frame[top : top + side, left : left + side] = level
    return frame


def followed_through(frames: list[np.ndarray]) -> list[int | None]:
    """Where the face is in every frame, from the left, by a network that takes anything for a
    face; None where there is none."""
    network = SimpleNamespace(
        detector=Blobs(),
        second_look=lambda frame, crop: crop,
        estimate=lambda frame, crop: None,
        followed=lambda crop, parameters: crop,
    )
    said = list(track(frames, network))
    assert len(said) == len(frames)
    return [one and round(one[0].center_x) for one in said]


HERE, THERE, LARGE = (100, 120, 40), (240, 120, 40), (240, 120, 80)
LONG = 40
"""Frames: more than a face is waited for."""


def test_frames_after_the_face_has_gone_are_not_its_own() -> None:
    with_face, without = [scene(HERE)] * 10, [scene()] * LONG
    assert followed_through(with_face + without) == [100] * 10 + [None] * LONG
    # It comes back where it was, or about there.
    back = followed_through(with_face + without + [scene((120, 110, 50))] * 3)
    assert back == [100] * 10 + [None] * LONG + [120] * 3
    # The clip ends before anybody could know.
    assert followed_through(with_face + [scene()] * 2) == [100] * 10 + [None] * 2


def test_a_face_that_is_missed_for_a_moment_is_followed_on() -> None:
    frames = [scene(HERE)] * 10
    for number in (4, 6, 7):
        frames[number] = scene(HERE, level=100)
    assert followed_through(frames) == [100] * 10


@pytest.mark.parametrize("missed", [1, LONG])
@pytest.mark.parametrize("other", [THERE, LARGE])
def test_another_person_is_not_taken_for_the_one_who_is_missed(
    other: tuple[int, int, int], missed: int
) -> None:
    """At no frame, and neither while the face is only missed nor once it is lost."""
    both, alone = [scene(HERE, other)] * 30, [scene(other)] * missed
    if other is LARGE:  # it comes once the first is known
        both[:10] = [scene(HERE)] * 10
    else:
        both[0] = scene(HERE)
    expected = [100] * 30 + [100 if missed == 1 else None] * missed + [100] * 30
    assert followed_through(both + alone + both) == expected
    assert followed_through(both + alone) == [100] * 30 + [None] * missed


def test_what_was_hardly_seen_is_not_the_face_of_the_clip() -> None:
    """The detector erred in the first frames, or somebody walked through."""
    frames = [scene(HERE)] * 2 + [scene(THERE)] * LONG
    found = followed_through(frames)
    assert set(found[:2]) == {100} and set(found[-LONG // 2 :]) == {240}


def test_what_is_found_on_a_small_picture_lies_in_the_frame() -> None:
    for angle in (0.0, 0.6, -2.5):
        crop = SquareCrop(150.0, 90.0, 60.0, angle)
        x, y = crop.to_photo(np.array([0.5, -0.4]))
        (found,) = video._faces_around(scene((x, y, 30)), crop, 3.0, Blobs())
        assert (found.center_x, found.center_y) == pytest.approx((x, y), abs=1)
        assert found.angle == angle
    upright = video._faces_around(scene((150, 90, 30)), SquareCrop(150.0, 90.0, 60.0), 3.0, Blobs())
    assert upright[0].size == pytest.approx(30 * LANDMARK_BOX_TO_CROP, rel=0.05)


def test_a_face_that_leaves_the_picture() -> None:
    """With the networks themselves: it slides out, and what is behind it is left as it is."""
    reconstructor = Reconstructor.from_pretrained(
        released_checkpoint("cest"), FaceDetector(EMBEDDED), "cpu"
    )
    photo = np.asarray(Image.open(ASTRONAUT))
    # The face is between 180 and 270.
    lefts = [120] * 4 + list(range(140, 300, 20)) + [300] * 16
    frames = [np.ascontiguousarray(photo[:300, left : left + 200]) for left in lefts]
    found = list(track(frames, reconstructor))
    assert all(one is not None for one, left in zip(found, lefts) if left <= 180)
    assert all(one is None for one, left in zip(found, lefts) if left >= 280)
