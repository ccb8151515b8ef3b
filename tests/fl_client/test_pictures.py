"""Pictures by public rules: exact pixels of small made-up files of each kind; files that lie."""

import gzip
import io
import json
import math
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_client.data import picture_files, pictures
from fl_client.data import survey as surveying
from fl_client.data.pictures import PictureRules, patient_id, read_picture
from fl_client.data.survey import survey
from fl_client.errors import DatasetError

pydicom = pytest.importorskip("pydicom", reason="pip install 'datahub[pictures]'")
nibabel = pytest.importorskip("nibabel", reason="pip install 'datahub[pictures]'")
pytest.importorskip("PIL", reason="pip install 'datahub[pictures]'")
from PIL import Image, PngImagePlugin  # noqa: E402
from pydicom import uid  # noqa: E402

XRAYS = Path(__file__).parents[3] / "shared/data/pneumoniamnist/pneumoniamnist_dev.npz"
RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8)
GREY = PictureRules(1, (6, 8))
VOLUME = PictureRules(1, (2, 6, 8))
JPEG_LS = "1.2.840.10008.1.2.4.80"


def png(path: Path, pixels: np.ndarray, **said: Any) -> Path:
    Image.fromarray(pixels).save(path, **said)
    return path


def dicom(
    path: Path,
    pixels: np.ndarray,
    photometric: str = "MONOCHROME2",
    syntax: str = uid.ExplicitVRLittleEndian,
    **elements: Any,
) -> Path:
    """A file with made-up names; `pixels` [h, w], [frames, h, w] or with colours last."""
    colours = pixels.ndim > 2 and pixels.shape[-1] == 3
    plane = pixels.shape[:-1] if colours else pixels.shape
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.PatientName, dataset.PatientID = "MADEUP^NAME", "MADE-UP-7"
    dataset.Rows, dataset.Columns = plane[-2:]
    if len(plane) == 3:
        dataset.NumberOfFrames = plane[0]
    dataset.SamplesPerPixel = 3 if colours else 1
    if colours:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    if syntax == uid.RLELossless:
        dataset.compress(syntax)
    elif syntax in (uid.JPEG2000Lossless, uid.JPEGBaseline8Bit, JPEG_LS):
        made, said = io.BytesIO(), {"no_jp2": True} if syntax == uid.JPEG2000Lossless else {}
        Image.fromarray(pixels).save(made, "JPEG2000" if said else "JPEG", **said)
        dataset.PixelData = pydicom.encaps.encapsulate([made.getvalue()])
        dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    return path


def nifti(path: Path, voxels: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> Path:
    """Voxels [x, y, z], with an affine that turns everything round."""
    image = nibabel.Nifti1Image(voxels, np.diag([-2.0, -2.0, 3.0, 1.0]))
    raw = bytearray(image.to_bytes())
    raw[112:120] = struct.pack("<ff", slope, intercept)
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))
    return path


def npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def refusal(path: Path, rules: PictureRules = GREY, **said: Any) -> str:
    with pytest.raises(DatasetError) as refused:
        read_picture(path, rules, **said)
    assert str(refused.value).startswith(f"{path.name}: ") and "\n" not in str(refused.value)
    return str(refused.value)


# --- rules


def test_rules__as_json_and_back__are_the_same() -> None:
    rules = PictureRules(3, (2, 4, 8), (-1000, 400), "pad")
    assert PictureRules.from_dict(json.loads(json.dumps(rules.as_dict()))) == rules
    assert rules.as_dict()["window"] == [-1000.0, 400.0] and rules.shape == (3, 2, 4, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("channels", x) for x in (2, True, "1", None, 1.0)],
        *[("size", x) for x in ([8], [8, 0], [8, 8.0], [True, 8], [1] * 4, 8, None, [4097, 1])],
        ("size", [4096, 4096, 4096]),
        *[("window", x) for x in ([0], [1, 1], [2, 1], [0, math.nan], [0, math.inf], "01")],
        *[("window", x) for x in ([0, True], [-1e308, 1e308], {"low": 0})],
        *[("fit", x) for x in ("squeeze", None, ["pad"])],
    ],
)
def test_rules__one_field_wrong__is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(DatasetError, match=f"^{field}=") as refused:
        PictureRules.from_dict(GREY.as_dict() | {field: value})
    assert repr(value) in str(refused.value) and "must be" in str(refused.value)


@pytest.mark.parametrize("value", [None, [], {}, {**GREY.as_dict(), "more": 1}, "rules", 7])
def test_rules__other_fields__are_refused(value: Any) -> None:
    with pytest.raises(DatasetError, match="exactly the fields channels, size, window, fit"):
        PictureRules.from_dict(value)


# --- ordinary pictures


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_eight_bits__of_the_right_size__are_taken_as_they_are(tmp_path: Path, kind: str) -> None:
    path = png(tmp_path / f"a.{kind}", RAMP)
    assert (read_picture(path, GREY) == RAMP[None]).all()
    three = read_picture(path, PictureRules(3, (6, 8)))
    assert three.shape == (3, 6, 8) and (three == RAMP).all() and three.dtype == np.uint8


def test_eight_bits__window_declared__is_not_theirs(tmp_path: Path) -> None:
    windowed = PictureRules(1, (6, 8), (-1000, 400))
    assert (read_picture(png(tmp_path / "a.png", RAMP), windowed) == RAMP).all()


def test_jpeg__grey_and_colour__is_read(tmp_path: Path) -> None:
    flat = np.full((6, 8, 3), (200, 100, 50), np.uint8)
    Image.fromarray(flat).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    read = read_picture(tmp_path / "a.jpg", PictureRules(3, (6, 8)))
    assert np.abs(read.astype(int) - [[[200]], [[100]], [[50]]]).max() <= 2
    grey = (299 * 200 + 587 * 100 + 114 * 50) / 1000
    assert np.abs(read_picture(tmp_path / "a.jpg", GREY).astype(int) - grey).max() <= 2


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits__by_their_whole_range_or_the_window(tmp_path: Path, kind: str) -> None:
    values = np.array([[0, 128, 129, 257], [4095, 32768, 65407, 65535]], np.uint16)
    path = png(tmp_path / f"a.{kind}", values)
    whole = [[0, 0, 1, 1], [16, 128, 255, 255]]
    assert read_picture(path, PictureRules(1, (2, 4))).tolist() == [whole]
    windowed = read_picture(path, PictureRules(1, (2, 4), (0, 4095)))
    assert windowed.tolist() == [[[0, 8, 8, 16], [255, 255, 255, 255]]]


def test_tiff__sixteen_bits_with_white_as_zero__is_turned_round(tmp_path: Path) -> None:
    values = np.array([[0, 65535, 257, 0]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert read_picture(tmp_path / "a.tif", PictureRules(1, (1, 4))).tolist() == [
        [[255, 0, 254, 255]]
    ]


def test_tiff__real_numbers__need_a_window(tmp_path: Path) -> None:
    path = png(tmp_path / "a.tif", np.array([[-1, 0, np.nan, 0.5, 9]], np.float32))
    assert "need a window" in refusal(path, PictureRules(1, (1, 5)))
    read = read_picture(path, PictureRules(1, (1, 5), (0, 1)))
    assert read.tolist() == [[[0, 0, 0, 128, 255]]]


def test_palette__is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png", PictureRules(3, (1, 4)))
    assert read.tolist() == [[[10, 40, 70, 40]], [[20, 50, 80, 50]], [[30, 60, 90, 60]]]
    image.save(tmp_path / "b.png", transparency=1)
    read = read_picture(tmp_path / "b.png", PictureRules(3, (1, 4)))
    assert read.tolist() == [[[10, 0, 70, 0]], [[20, 0, 80, 0]], [[30, 0, 90, 0]]]


def test_alpha__lies_on_black(tmp_path: Path) -> None:
    pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 128]]], np.uint8)
    read = read_picture(png(tmp_path / "a.png", pixels), PictureRules(3, (1, 3)))
    assert read[:, 0].T.tolist() == [[200, 100, 50], [0, 0, 0], [100, 50, 25]]
    grey = read_picture(png(tmp_path / "b.png", pixels[:, :, [0, 3]]), PictureRules(1, (1, 3)))
    assert grey.tolist() == [[[200, 0, 100]]]


def test_one_bit__is_black_and_white(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", np.array([[True, False, True]]))
    assert read_picture(path, PictureRules(1, (1, 3))).tolist() == [[[255, 0, 255]]]


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_exif__orientation__is_followed(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    path = png(tmp_path / f"a.{kind}", RAMP, exif=exif)
    assert (read_picture(path, PictureRules(1, (8, 6))) == np.rot90(RAMP, -1)).all()


def test_pages__of_a_tiff__are_a_volume_and_no_flat_picture(tmp_path: Path) -> None:
    first, second = Image.fromarray(RAMP), Image.fromarray(RAMP + 100)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    assert "holds 2 planes; the rules are for flat pictures" in refusal(tmp_path / "a.tif")
    assert (read_picture(tmp_path / "a.tif", VOLUME)[0] == [RAMP, RAMP + 100]).all()
    first.save(tmp_path / "b.tif", save_all=True, append_images=[second.resize((3, 3))])
    assert "not of one kind and size" in refusal(tmp_path / "b.tif", VOLUME)


def test_animated_png__is_refused(tmp_path: Path) -> None:
    first = Image.fromarray(RAMP)
    first.save(tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(RAMP + 9)])
    assert "holds 2 planes" in refusal(tmp_path / "a.png")


def test_flat_picture__rules_for_volumes__is_refused(tmp_path: Path) -> None:
    assert "holds one plane" in refusal(png(tmp_path / "a.png", RAMP), VOLUME)


# --- sizes


@pytest.mark.parametrize(
    ("fit", "rows"),
    [
        ("stretch", [[4, 6, 8, 9], [15, 17, 19, 20], [27, 29, 31, 32], [38, 40, 42, 43]]),
        ("pad", [[7, 9, 11, 12], [21, 23, 25, 26], [35, 37, 39, 40], [0, 0, 0, 0]]),
        ("crop", [[4, 6, 7, 9], [15, 17, 18, 20], [27, 29, 30, 32], [38, 40, 41, 43]]),
    ],
)
def test_fit__of_a_wide_picture__is_as_declared(tmp_path: Path, fit: str, rows: Any) -> None:
    rules = PictureRules(1, (4, 4), fit=fit)
    assert read_picture(png(tmp_path / "a.png", RAMP), rules).tolist() == [rows]


def test_fit__same_size__changes_nothing(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", RAMP)
    for fit in pictures.FITS:
        assert (read_picture(path, PictureRules(1, (6, 8), fit=fit)) == RAMP).all()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(1, 40),
    st.integers(1, 400),
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from(pictures.FITS),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.integers(0, 255),
)
def test_fit__whatever_the_sizes__a_plain_picture_stays_plain(
    tmp_path: Path, h: int, w: int, height: int, width: int, fit: str, turn: bool,
    channels: int, level: int,
) -> None:  # fmt: skip
    h, w = (w, h) if turn else (h, w)
    path = png(tmp_path / "a.png", np.full((h, w), level, np.uint8))
    read = read_picture(path, PictureRules(channels, (height, width), fit=fit))
    assert read.shape == (channels, height, width) and read.dtype == np.uint8
    assert set(np.unique(read)) <= ({0, level} if fit == "pad" else {level})
    if fit == "pad":
        share = np.mean(read == level)
        assert read.max() == level and (level == 0 or share >= 1 / max(height, width))


# --- DICOM


def test_dicom__eight_bits__are_taken_as_they_are(tmp_path: Path) -> None:
    assert (read_picture(dicom(tmp_path / "a", RAMP), GREY) == RAMP).all()


def test_dicom__monochrome1__is_turned_round(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a", RAMP, "MONOCHROME1")
    assert (read_picture(path, GREY) == 255 - RAMP).all()


def test_dicom__slope_intercept_and_window_of_the_rules(tmp_path: Path) -> None:
    stored = np.array([[0, 1000, 1012, 1024], [1036, 1048, 1500, 4000]], np.uint16)
    said = {"RescaleSlope": "2", "RescaleIntercept": "-2000"}
    # the file's own window is not looked at
    path = dicom(tmp_path / "a", stored, **said, WindowCenter="40", WindowWidth="1")
    read = read_picture(path, PictureRules(1, (2, 4), (0, 96)))
    assert read.tolist() == [[[0, 0, 64, 128], [191, 255, 255, 255]]]
    path = dicom(tmp_path / "b", stored, "MONOCHROME1", **said)
    read = read_picture(path, PictureRules(1, (2, 4), (0, 96)))
    assert read.tolist() == [[[255, 255, 191, 127], [64, 0, 0, 0]]]


def test_dicom__signed_values(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a", np.array([[-2000, -1000, -300, 400]], np.int16))
    assert read_picture(path, PictureRules(1, (1, 4), (-1000, 400))).tolist() == [
        [[0, 0, 128, 255]]
    ]


@pytest.mark.parametrize(
    "made",
    [
        lambda at: dicom(at, RAMP.astype(np.uint16)),
        lambda at: dicom(at, RAMP, RescaleSlope="2", RescaleIntercept="0"),
        lambda at: dicom(at, RAMP, BitsStored=6, HighBit=5),
    ],
)
def test_dicom__other_values_without_a_window__are_refused(
    tmp_path: Path, made: Callable[[Path], Path]
) -> None:
    assert "need a window" in refusal(made(tmp_path / "a"))


@pytest.mark.parametrize("slope", ["0", "nan", "inf"])
def test_dicom__slope_is_no_usable_number__is_refused(tmp_path: Path, slope: str) -> None:
    path = dicom(tmp_path / "a", RAMP)
    raw = path.read_bytes()
    element = struct.pack("<HH2sH", 0x28, 0x1053, b"DS", 4) + slope.encode().ljust(4)
    at = raw.index(struct.pack("<HH", 0x7FE0, 0x10))
    path.write_bytes(raw[:at] + element + raw[at:])
    assert "no usable number" in refusal(path, PictureRules(1, (6, 8), (0, 9)))


def test_dicom__rescaled_frame_by_frame__each_by_its_own(tmp_path: Path) -> None:
    def group(slope: str) -> Any:
        inner, outer = pydicom.Dataset(), pydicom.Dataset()
        inner.RescaleSlope, inner.RescaleIntercept = slope, "0"
        outer.PixelValueTransformationSequence = [inner]
        return outer

    frames = np.full((2, 6, 8), 10, np.uint8)
    rules = PictureRules(1, (2, 6, 8), (0, 255))
    path = dicom(
        tmp_path / "a",
        frames,
        SharedFunctionalGroupsSequence=[group("7")],
        PerFrameFunctionalGroupsSequence=[group("2"), pydicom.Dataset()],
    )
    assert [int(x) for x in read_picture(path, rules)[0, :, 0, 0]] == [20, 70]
    path = dicom(tmp_path / "b", frames, PerFrameFunctionalGroupsSequence=[group("2")])
    assert "another number of frames" in refusal(path, rules)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_dicom__colours(tmp_path: Path, syntax: str) -> None:
    colours = np.stack([RAMP, RAMP + 50, RAMP + 100], axis=-1)
    path = dicom(tmp_path / "a", colours, "RGB", syntax)
    assert (read_picture(path, PictureRules(3, (6, 8))) == np.moveaxis(colours, -1, 0)).all()
    level = np.full((6, 8), 128, np.uint8)
    path = dicom(tmp_path / "b", np.stack([RAMP, level, level], axis=-1), "YBR_FULL")
    assert (read_picture(path, PictureRules(3, (6, 8))) == RAMP).all()


def test_dicom__palette__is_looked_up(tmp_path: Path) -> None:
    tables = {
        f"{colour}PaletteColorLookupTableData": np.array(levels, "<u2").tobytes()
        for colour, levels in [
            ("Red", [0, 257 * 100, 65535]),
            ("Green", [257 * 7, 0, 65535]),
            ("Blue", [0, 0, 257 * 9]),
        ]
    }
    described = {
        f"{colour}PaletteColorLookupTableDescriptor": [3, 0, 16]
        for colour in ("Red", "Green", "Blue")
    }
    pixels = np.array([[0, 1], [2, 1]], np.uint8)
    path = dicom(tmp_path / "a", pixels, "PALETTE COLOR", **tables, **described)
    read = read_picture(path, PictureRules(3, (2, 2)))
    assert read[:, 0, 0].tolist() == [0, 7, 0] and read[:, 1, 0].tolist() == [255, 255, 9]
    assert read[:, 0, 1].tolist() == read[:, 1, 1].tolist() == [100, 0, 0]


@pytest.mark.parametrize(
    ("photometric", "pixels"),
    [
        ("RGB", RAMP),
        ("MONOCHROME2", np.zeros((6, 8, 3), np.uint8)),
        ("RGB", np.zeros((6, 8, 3), np.uint16)),
        ("HSV", np.zeros((6, 8, 3), np.uint8)),
        ("MONOCHROME2", np.zeros((6, 8), np.uint64)),
    ],
)
def test_dicom__kinds_that_are_not_read__are_said(
    tmp_path: Path, photometric: str, pixels: np.ndarray
) -> None:
    assert "not read" in refusal(dicom(tmp_path / "a", pixels, photometric))


def test_dicom__frames__are_a_volume_and_no_flat_picture(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a", np.stack([RAMP, RAMP + 100]))
    assert "holds 2 planes; the rules are for flat pictures" in refusal(path)
    assert (read_picture(path, VOLUME)[0] == [RAMP, RAMP + 100]).all()
    path = dicom(tmp_path / "b", np.stack([RAMP, RAMP + 100]), syntax=uid.RLELossless)
    assert (read_picture(path, VOLUME)[0] == [RAMP, RAMP + 100]).all()
    deep = read_picture(path, PictureRules(3, (4, 6, 8)))
    assert deep.shape == (3, 4, 6, 8) and (np.diff(deep[0, :, 0, 0].astype(int)) > 0).all()


@pytest.mark.parametrize(
    "syntax",
    [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless, uid.JPEG2000Lossless],
)
def test_dicom__other_syntaxes__give_the_same_pixels(tmp_path: Path, syntax: str) -> None:
    assert (read_picture(dicom(tmp_path / "a", RAMP, syntax=syntax), GREY) == RAMP).all()
    if syntax != uid.ExplicitVRBigEndian:  # whose words `dicom` does not turn round
        wide = RAMP.astype(np.uint16) * 85
        path = dicom(tmp_path / "b", wide, syntax=syntax)
        expected = np.floor(wide / 4080 * 255 + 0.5)
        assert (read_picture(path, PictureRules(1, (6, 8), (0, 4080))) == expected).all()


def test_dicom__jpeg__is_read(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a", RAMP, syntax=uid.JPEGBaseline8Bit)
    assert np.abs(read_picture(path, GREY).astype(int) - RAMP).max() <= 3


@pytest.mark.parametrize("syntax", [JPEG_LS, uid.DeflatedExplicitVRLittleEndian])
def test_dicom__syntax_that_is_not_decoded__is_named(tmp_path: Path, syntax: str) -> None:
    said = refusal(dicom(tmp_path / "a", RAMP, syntax=syntax))
    assert uid.UID(syntax).name in said and "convert it" in said


def test_dicom__compressed_frame_of_another_size__is_refused_undecoded(tmp_path: Path) -> None:
    for syntax in (uid.JPEGBaseline8Bit, uid.RLELossless):
        path = dicom(tmp_path / "a", np.zeros((64, 64), np.uint8), syntax=syntax)
        dataset = pydicom.dcmread(path)
        dataset.Rows = dataset.Columns = 4
        dataset.save_as(path)
        assert "not what its header says" in refusal(path)


def test_dicom__burnt_in_text__only_with_the_owners_consent(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a", RAMP, BurnedInAnnotation="YES")
    assert "BurnedInAnnotation is YES" in refusal(path)
    assert (read_picture(path, GREY, accept_burned_in=True) == RAMP).all()
    assert "is YES" in refusal(dicom(tmp_path / "a", RAMP, BurnedInAnnotation=["NO", "YES"]))
    assert (read_picture(dicom(tmp_path / "b", RAMP, BurnedInAnnotation="NO"), GREY) == RAMP).all()


def test_dicom__no_pixels__is_said(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a", RAMP)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    assert "has no pixels" in refusal(path)


def test_patient_id__is_read_without_blanks(tmp_path: Path) -> None:
    assert patient_id(dicom(tmp_path / "a", RAMP, PatientID=" MADE UP 7 ")) == "MADE UP 7"
    # of a file whose pixels cannot be decoded, too
    assert patient_id(dicom(tmp_path / "b", RAMP, syntax=JPEG_LS)) == "MADE-UP-7"


@pytest.mark.parametrize("value", ["", "  ", ["A", "B"]])
def test_patient_id__none_or_several__is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DatasetError, match="a: has no PatientID, or several"):
        patient_id(dicom(tmp_path / "a", RAMP, PatientID=value))


def test_patient_id__of_another_kind_of_file__is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"^a.png: is no DICOM file"):
        patient_id(png(tmp_path / "a.png", RAMP))
    with pytest.raises(DatasetError, match=r"^none: there is no such file"):
        patient_id(tmp_path / "none")


def test_errors__of_a_damaged_dicom__never_quote_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = dicom(tmp_path / "a", RAMP, RescaleSlope="1", RescaleIntercept="0")
    raw = path.read_bytes()
    for name in ("DS", "US", "CS"):
        found = raw.find(name.encode(), 300)
        path.write_bytes(raw[: found + 4] + b"MADEUP" + raw[found + 10 :])
        try:
            read_picture(path, GREY)
        except DatasetError as error:
            assert "MADEUP" not in str(error)
    said = capfd.readouterr()
    assert "MADEUP" not in said.out + said.err + caplog.text


# --- NIfTI and NPY


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti__as_stored(tmp_path: Path, name: str) -> None:
    voxels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(4, 3, 2, order="F")
    read = read_picture(nifti(tmp_path / name, voxels), PictureRules(1, (2, 3, 4)))
    # x runs fastest in the file: it is the column; y the row, z the plane
    assert (read == np.arange(24).reshape(1, 2, 3, 4)).all()
    flat = read_picture(nifti(tmp_path / name, voxels[:, :, :1]), PictureRules(1, (3, 4)))
    assert (flat == np.arange(12).reshape(1, 3, 4)).all()


def test_nifti__slope_intercept_and_window(tmp_path: Path) -> None:
    voxels = np.array([0, 500, 1000, 2000], np.int16).reshape(4, 1)
    path = nifti(tmp_path / "a.nii", voxels, slope=2, intercept=-1000)
    rules = PictureRules(1, (1, 4), (-1000, 1000))
    assert read_picture(path, rules).tolist() == [[[0, 128, 255, 255]]]
    assert "need a window" in refusal(path, PictureRules(1, (1, 4)))
    floats = np.array([np.nan, -np.inf, 0.25, np.inf], np.float32).reshape(4, 1)
    path = nifti(tmp_path / "b.nii", floats)
    assert read_picture(path, PictureRules(1, (1, 4), (0, 1))).tolist() == [[[0, 0, 64, 255]]]


def test_nifti__second_version_and_other_axes(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=np.uint8).reshape(4, 3, 2, order="F")
    path = tmp_path / "a.nii"
    path.write_bytes(nibabel.Nifti2Image(voxels, np.eye(4)).to_bytes())
    rules = PictureRules(1, (2, 3, 4))
    assert (read_picture(path, rules) == np.arange(24).reshape(1, 2, 3, 4)).all()
    path = nifti(tmp_path / "b.nii", np.zeros((2, 2, 2, 2), np.uint8))
    assert "has 4 axes" in refusal(path, rules)
    path = nifti(tmp_path / "c.nii", np.zeros((2, 2, 2), np.complex64))
    assert "whole and real numbers" in refusal(path, rules)


def test_npy__arrays__with_and_without_channels(tmp_path: Path) -> None:
    assert (read_picture(npy(tmp_path / "a.npy", RAMP), GREY) == RAMP).all()
    assert (read_picture(npy(tmp_path / "a.npy", RAMP[None]), GREY) == RAMP).all()
    colours = np.stack([RAMP, RAMP + 50, RAMP + 100])
    path = npy(tmp_path / "b.npy", np.asfortranarray(colours))
    assert (read_picture(path, PictureRules(3, (6, 8))) == colours).all()
    path = npy(tmp_path / "c.npy", np.stack([RAMP, RAMP]).astype(np.int32) - 10)
    read = read_picture(path, PictureRules(1, (2, 6, 8), (0, 255)))
    assert (read == np.maximum(0, RAMP.astype(int) - 10)).all()


@pytest.mark.parametrize(
    "array",
    [np.zeros(4), np.zeros((2, 6, 8)), np.zeros((3, 6, 8)), np.array([[{}]]), np.array([["a"]])],
)
def test_npy__other_arrays__are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    refusal(tmp_path / "a.npy")


# --- files that lie, are cut short or damaged


def _png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_sizes__absurd__are_refused_undecoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(_png_of(60_000, 60_000))
    assert "more pixels than are read" in refusal(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(_png_of(10_000, 10_000))
    assert "at most 67108864 pixels" in refusal(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(_png_of(1_000_000, 1))
    assert "65536 a side" in refusal(tmp_path / "a.png")
    assert "60000 x 60000" in refusal(dicom(tmp_path / "b", RAMP, Rows=60_000, Columns=60_000))
    assert "60000 planes" in refusal(dicom(tmp_path / "b", RAMP, NumberOfFrames=60_000), VOLUME)
    (tmp_path / "d.npy").write_bytes(
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (60000, 60000), }".ljust(117)
        + b"\n"
    )
    assert "60000 x 60000" in refusal(tmp_path / "d.npy")
    monkeypatch.setattr(picture_files, "MOST_BYTES", 100)
    assert "bytes; 100 are the most" in refusal(npy(tmp_path / "e.npy", RAMP))


def test_nifti__packed_bomb__is_unpacked_as_far_as_its_header_says(tmp_path: Path) -> None:
    raw = nifti(tmp_path / "a.nii", RAMP).read_bytes()
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(raw + bytes(1000)))
    assert (read_picture(packed, PictureRules(1, (8, 6))) == RAMP.T).all()
    packed.write_bytes(gzip.compress(raw + bytes(50_000_000)))
    assert "goes on after its voxels" in refusal(packed, PictureRules(1, (8, 6)))
    far = bytearray(raw)
    far[108:112] = struct.pack("<f", 1e9)  # where its voxels begin
    packed.write_bytes(gzip.compress(bytes(far)))
    assert "its voxels begin at byte" in refusal(packed)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(500), b"\x89PNG", b"II*\0", b"\x1f\x8b"])
def test_other_files__are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    refusal(tmp_path / "a")


def test_no_file__or_a_folder__is_said(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "none")
    assert "there is no such file" in refusal(tmp_path)


def test_libraries_missing__says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dicom(tmp_path / "a", RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert "pip install 'datahub[pictures]'" in refusal(path)


def test_libraries__are_imported_when_a_picture_is_read_not_before() -> None:
    code = (
        "import sys, fl_client.data.pictures, fl_client.data.survey, fl_client.data.shards\n"
        "assert not {'PIL', 'pydicom', 'nibabel'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


VOLUMES = ("pages", "dicom rle", "dicom frames", "nifti.nii")


def _good(folder: Path) -> dict[str, bytes]:
    colours = np.stack([RAMP, RAMP + 50, RAMP + 100], axis=-1)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "made up"
    text = PngImagePlugin.PngInfo()
    text.add_text("name", "made up")
    Image.fromarray(colours).save(folder / "jpeg", "JPEG", exif=exif)
    Image.fromarray(RAMP).save(
        folder / "pages", "TIFF", save_all=True, append_images=[Image.fromarray(RAMP)]
    )
    Image.fromarray(colours).save(folder / "lzw", "TIFF", compression="tiff_lzw")
    Image.fromarray(colours).save(folder / "palette", "PNG")
    Image.fromarray(colours).quantize(16).save(folder / "palette", "PNG", pnginfo=text, exif=exif)
    png(folder / "png16.png", RAMP.astype(np.uint16) * 900)
    dicom(folder / "dicom", RAMP.astype(np.uint16), "MONOCHROME1", RescaleSlope="2")
    dicom(folder / "dicom colours", colours, "RGB")
    dicom(folder / "dicom rle", np.stack([RAMP, RAMP]), syntax=uid.RLELossless)
    dicom(folder / "dicom jpeg", RAMP, syntax=uid.JPEGBaseline8Bit)
    dicom(folder / "dicom j2k", RAMP, syntax=uid.JPEG2000Lossless)
    group = pydicom.Dataset()
    group.PixelValueTransformationSequence = [pydicom.Dataset()]
    group.PixelValueTransformationSequence[0].RescaleSlope = "2"
    frames = np.stack([RAMP, RAMP]).astype(np.int16)
    dicom(folder / "dicom frames", frames, PerFrameFunctionalGroupsSequence=[group, group])
    nifti(folder / "nifti.nii", np.stack([RAMP, RAMP], axis=-1).astype(np.int16))
    nifti(folder / "packed.nii.gz", RAMP.astype(np.float32))
    npy(folder / "array.npy", RAMP)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return _good(tmp_path_factory.mktemp("good"))


def _read_or_refused(path: Path) -> None:
    for rules in (PictureRules(1, (5, 4), (0, 50), "crop"), PictureRules(3, (2, 5, 4), (0, 50))):
        try:
            read = read_picture(path, rules, accept_burned_in=True)
        except DatasetError as error:
            assert str(error).startswith(f"{path.name}: ")
        else:
            assert read.dtype == np.uint8 and read.shape == rules.shape
    try:
        assert patient_id(path)
    except DatasetError as error:
        assert str(error).startswith(f"{path.name}: ")


def test_good_files__of_each_kind__are_read(tmp_path: Path, good: dict[str, bytes]) -> None:
    for name, content in good.items():
        (tmp_path / name).write_bytes(content)
        volume = name in VOLUMES
        rules = PictureRules(1, (2, 5, 4) if volume else (5, 4), (0, 50))
        assert read_picture(tmp_path / name, rules).any(), name


def test_cut_short__anywhere__is_refused_or_has_lost_nothing(
    tmp_path: Path, good: dict[str, bytes]
) -> None:
    for name, content in good.items():
        rules = PictureRules(1, (2, 6, 8) if name in VOLUMES else (6, 8), (0, 50))
        path = tmp_path / name
        path.write_bytes(content)
        whole = read_picture(path, rules)
        for length in range(0, len(content), max(1, len(content) // 60)):
            path.write_bytes(content[:length])
            try:
                read = read_picture(path, rules)
            except DatasetError:
                continue
            # a lossy stream may end early by a byte and decode; anything else has all its pixels
            assert (read == whole).all() or "j" in name, (name, length)


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz"])
def test_damaged__a_kind_with_checksums__never_gives_other_pixels(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    pixels = np.random.default_rng(0).integers(0, 256, (15, 20), dtype=np.uint8)
    png(path, pixels) if name == "a.png" else nifti(path, pixels.T.copy())
    content = path.read_bytes()
    refused = 0
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            assert (read_picture(path, PictureRules(1, (15, 20))) == pixels).all(), at
        except DatasetError:
            refused += 1
    assert refused > 0.8 * len(content)


@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damaged__whatever_the_bytes__is_read_or_refused(
    tmp_path: Path, good: dict[str, bytes], data: st.DataObject
) -> None:
    content = bytearray(good[data.draw(st.sampled_from(sorted(good)))])
    for at, value in data.draw(
        st.lists(
            st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=6
        )
    ):
        content[at] = value
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path = tmp_path / "damaged"
    path.write_bytes(content[:end])
    _read_or_refused(path)


# --- many


def test_survey__broken_ones__are_named_and_the_others_kept(tmp_path: Path) -> None:
    paths = [png(tmp_path / f"{i}.png", RAMP + i) for i in range(12)]
    paths[3].write_bytes(paths[3].read_bytes()[:50])
    paths[7].unlink()
    paths.append(dicom(tmp_path / "b", RAMP, BurnedInAnnotation="YES"))
    told: list[tuple[int, int]] = []
    kept, why = survey(iter(paths), GREY, lambda *done: told.append(done), workers=2)
    assert kept == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert list(why) == [paths[3], paths[7], paths[12]]
    assert all(sentence.startswith(f"{path.name}: ") for path, sentence in why.items())
    assert told == [(i, 13) for i in range(1, 14)]
    assert survey(paths, GREY, workers=1, accept_burned_in=True)[0][-1] == 12
    assert survey([], GREY) == ([], {})


def test_survey__called_at_the_top_of_a_script__does_not_run_it_again(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", RAMP)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom fl_client.data.survey import survey\n"
        "from fl_client.data.pictures import PictureRules\n"
        "print(survey([Path(sys.argv[1])], PictureRules(1, (6, 8))))\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, script, path],
        capture_output=True, text=True, check=True, timeout=60, env={"PYTHONPATH": root},
    )  # fmt: skip
    assert done.stdout == "([0], {})\n" and done.stderr == ""


DEADLY = """
import os, time
import fl_client.data.picture_files as files
plain = files._npy
def deadly(raw, volume):
    if b"KILL" in raw: os.kill(os.getpid(), 11)
    if b"HANG" in raw: time.sleep(60)
    if b"FILL" in raw: bytearray(1 << 40)
    return plain(raw, volume)
files._npy = deadly
"""


def test_survey__a_decoder_that_dies_hangs_or_fills_memory__costs_that_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        surveying, "START", surveying.START.replace("answer()", DEADLY + "answer()")
    )
    monkeypatch.setattr(surveying, "SECONDS", 3.0)
    paths = [npy(tmp_path / f"{i}.npy", RAMP) for i in range(8)]
    for path, deed in zip(paths[1::2], [b"KILL", b"HANG", b"FILL", b"KILL"], strict=True):
        path.write_bytes(path.read_bytes() + deed)
    kept, why = survey(paths, GREY, workers=2)
    assert kept == [0, 2, 4, 6]
    assert list(why.values()) == [
        "1.npy: reading it killed the process that read it",
        "3.npy: takes more than 3 seconds to read",
        "5.npy: needs more memory than there is",
        "7.npy: reading it killed the process that read it",
    ]


def test_survey__progress_raises__ends_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "import time\nimport fl_client.data.picture_files as files\n"
    slow += "files._npy = lambda *asked: time.sleep(1)\n"
    monkeypatch.setattr(surveying, "START", surveying.START.replace("answer()", slow + "answer()"))
    paths = [npy(tmp_path / f"{i}.npy", RAMP) for i in range(30)]
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        survey(paths, GREY, lambda *done: signal.raise_signal(signal.SIGINT), workers=2)
    assert time.monotonic() - start < 10


def test_survey__no_process_can_be_started__is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveying, "START", "raise SystemExit(1)")
    with pytest.raises(DatasetError, match="could be started"):
        survey([png(tmp_path / "a.png", RAMP)], GREY)


# --- real ones


@pytest.mark.skipif(not XRAYS.exists(), reason="chest X-rays are not here (../shared/data)")
def test_chest_xrays__as_png_and_as_dicom__have_the_pixels_of_the_source(tmp_path: Path) -> None:
    xrays = np.load(XRAYS)["val_images"][:20]
    rules = PictureRules(1, (28, 28))
    for i, xray in enumerate(xrays):
        assert (read_picture(png(tmp_path / f"{i}.png", xray), rules) == xray).all()
        path = dicom(tmp_path / f"{i}.dcm", 255 - xray, "MONOCHROME1", PatientID=f"P-{i % 7}")
        assert (read_picture(path, rules) == xray).all() and patient_id(path) == f"P-{i % 7}"
        small = read_picture(path, PictureRules(3, (14, 14), fit="crop"))
        assert abs(float(small.mean()) - float(xray.mean())) < 2
    kept, why = survey(sorted(tmp_path.iterdir()), rules, workers=2)
    assert len(kept) == 40 and not why
