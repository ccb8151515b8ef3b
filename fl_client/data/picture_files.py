"""The planes of a picture file, decoded one after the other: PNG, JPEG, TIFF, DICOM, NIfTI, NPY, by
what the first bytes say. Knows nothing of windows and sizes (pictures.py).

A file may hold anything: what it asks for is bounded before it is decoded, and an error says what
is wrong with it but never what stands in it. DICOM elements other than those of PIXEL_ELEMENTS are
not even read. The libraries are imported where they are used: no other command pays for them.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fl_client.errors import DatasetError

MOST_BYTES = 1 << 30  # of a file
MOST_SIDE = 1 << 16  # pixels
MOST_PIXELS = 1 << 26  # of a flat picture: 8192 x 8192
MOST_VOXELS = 1 << 28  # of a volume: 1024 slices of 512 x 512
MOST_FRAMES = 4096
MOST_NIFTI_OFFSET = 1 << 24  # where the voxels of a NIfTI file begin
MOST_NIFTI_REST = 1 << 24  # bytes after them
JPEG_SYNTAXES = {  # those that Pillow decodes: one decoder, so the same pixels on every machine
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
}
DEFLATED_SYNTAX = "1.2.840.10008.1.2.1.99"
RLE_SYNTAX = "1.2.840.10008.1.2.5"
PLAIN_SYNTAXES = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
PALETTES = [
    f"{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for part in ("Descriptor", "Data")
] + [f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
PIXEL_ELEMENTS = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration"),
    *("PhotometricInterpretation", "PixelRepresentation", "BitsAllocated", "BitsStored"),
    *("HighBit", "PixelData", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("BurnedInAnnotation", *PALETTES),
]

# their warnings quote what stands in a file
for _name in ("pydicom", "nibabel", "nibabel.global", "PIL"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)
    logging.getLogger(_name).disabled = True


@dataclass(frozen=True)
class Stored:
    """The `frames` planes of a file, each [h, w] of numbers or [h, w, 3] of uint8 colours, decoded
    when they are asked for.

    whole: the values that are black and white where no window is declared; None where one must be.
    windowed: whether a declared window is about these values.
    """

    frames: int
    planes: Iterator[np.ndarray]
    whole: tuple[float, float] | None
    windowed: bool
    inverted: bool = False


def open_picture(path: Path, volume: bool, accept_burned_in: bool) -> Stored:
    """The picture in `path`. Raises DatasetError, without the file's name, or whatever the
    libraries raise for a damaged file.
    """
    head = _head(path)
    if head[128:132] == b"DICM":
        return _dicom(path, volume, accept_burned_in)
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _ordinary(path.read_bytes(), volume)
    if head.startswith(b"\x93NUMPY"):
        return _npy(path.read_bytes(), volume)
    if head.startswith(b"\x1f\x8b") or head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        return _nifti(path.read_bytes(), volume)
    raise DatasetError("is none of PNG, JPEG, TIFF, DICOM (with its preamble), NIfTI and NPY")


def patient_of(path: Path) -> str:
    """The text of PatientID in a DICOM file, without the blanks around it."""
    from pydicom import dcmread

    if _head(path)[128:132] != b"DICM":
        raise DatasetError("is no DICOM file (with its preamble)")
    if _syntax(path) == DEFLATED_SYNTAX:
        raise DatasetError("is deflated, which is not read here")
    dataset = dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
    value = dataset.get("PatientID")
    if not isinstance(value, str) or not value.strip():
        raise DatasetError("has no PatientID, or several")
    if "\ufffd" in value:
        raise DatasetError("PatientID is not in the file's own character set")
    return value.strip()


def _head(path: Path) -> bytes:
    """The first bytes of a file of bounded size."""
    if not path.is_file():
        raise DatasetError("there is no such file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise DatasetError(f"{size} bytes; {MOST_BYTES} are the most")
    with path.open("rb") as file:
        return file.read(352)


def _bounded(frames: int, height: int, width: int, volume: bool) -> None:
    if volume and frames == 1:
        raise DatasetError("holds one plane; the rules are for volumes")
    if not volume and frames != 1:
        raise DatasetError(f"holds {frames} planes; the rules are for flat pictures")
    most = MOST_VOXELS if volume else MOST_PIXELS
    if (
        not (1 <= height <= MOST_SIDE and 1 <= width <= MOST_SIDE and 1 <= frames <= MOST_FRAMES)
        or frames * height * width > most
    ):
        raise DatasetError(
            f"{frames} planes of {height} x {width} pixels; at most {most} pixels in all, "
            f"{MOST_SIDE} a side and {MOST_FRAMES} planes are read"
        )


def _ordinary(raw: bytes, volume: bool) -> Stored:
    """PNG, JPEG, TIFF: turned as their EXIF data say, palettes looked up, transparent on black."""
    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(raw), formats=("PNG", "JPEG", "TIFF"))
    except (
        Image.DecompressionBombError
    ) as error:  # more than Pillow would open, so than MOST_PIXELS
        raise DatasetError(f"more pixels than are read, {MOST_PIXELS} at most") from error
    tiff = image.format == "TIFF"
    frames = 1
    if tiff:
        frames = _pages(image, MOST_FRAMES + 1 if volume else 2)
    elif image.format == "PNG":
        frames = image.n_frames
        # its checksums, which decoding does not look at
        Image.open(io.BytesIO(raw), formats=("PNG",)).verify()
    _bounded(frames, image.height, image.width, volume)
    mode, size = image.mode, image.size
    numbers = mode in ("I", "F") or mode.startswith("I;")

    def planes() -> Iterator[np.ndarray]:
        for page in range(frames):
            if tiff:
                image.seek(page)
            if (image.mode, image.size) != (mode, size):
                raise DatasetError("its pages are not of one kind and size")
            turned = ImageOps.exif_transpose(image)
            yield np.asarray(turned if numbers else _opaque(turned))

    whole = None if mode in ("I", "F") else (0.0, 65535.0) if numbers else (0.0, 255.0)
    # Pillow turns TIFF's "white is zero" round in 8 bits alone
    inverted = tiff and numbers and image.tag_v2.get(262) == 0
    return Stored(frames, planes(), whole, windowed=numbers, inverted=inverted)


def _pages(image: Any, most: int) -> int:
    """How many pages a TIFF has, counted up to `most`; back at the first."""
    count = 1
    try:
        while count < most:
            image.seek(count)
            count += 1
    except EOFError:
        pass
    image.seek(0)
    return count


def _opaque(image: Any) -> Any:
    from PIL import Image

    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        black.alpha_composite(image.convert("RGBA"))
        return black.convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _npy(raw: bytes, volume: bool) -> Stored:
    """Arrays [h, w] or [d, h, w], with a first axis of 1 or 3 channels or without."""
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    reader = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if reader is None:
        raise DatasetError("is not in version 1 or 2 of the NPY format")
    shape, _, dtype = reader(file)
    axes = 3 if volume else 2
    if len(shape) == axes:
        shape = (1, *shape)
    if len(shape) != axes + 1 or shape[0] not in (1, 3):
        raise DatasetError(
            f"has the shape {shape}; [{'d, ' * volume}h, w] or [channels, {'d, ' * volume}h, w] "
            "with 1 or 3 channels is read"
        )
    shape = (shape[0], shape[1] if volume else 1, *shape[-2:])
    _bounded(shape[1], shape[2], shape[3], volume)
    _numbers(dtype)
    if shape[0] == 3 and dtype != np.uint8:
        raise DatasetError(f"has colours of type {dtype}; uint8 is read")
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False).reshape(shape)
    planes = iter(np.moveaxis(array, 0, -1) if shape[0] == 3 else array[0])
    return Stored(shape[1], planes, (0.0, 255.0) if dtype == np.uint8 else None, windowed=True)


def _numbers(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise DatasetError(f"has values of type {dtype}; whole and real numbers are read")


def _scaled(plane: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    return plane.astype(np.float64) * float(slope) + float(intercept)


def _nifti(raw: bytes, volume: bool) -> Stored:
    """Voxels as they lie in the file, x fastest: planes along z, rows y, columns x. The header's
    orientation is not followed.
    """
    from nibabel import Nifti1Header, Nifti2Header

    packed = raw.startswith(b"\x1f\x8b")
    file = gzip.GzipFile(fileobj=io.BytesIO(raw)) if packed else io.BytesIO(raw)
    body = file.read(540)
    if body[344:348] == b"n+1\0":
        header = Nifti1Header(body[:348], check=False)
    elif body[4:8] == b"n+2\0":
        header = Nifti2Header(body[:540], check=False)
    else:
        raise DatasetError("is no NIfTI file with its voxels in it")
    shape, dtype = list(header.get_data_shape()), header.get_data_dtype()
    axes = 3 if volume else 2
    while len(shape) > axes and shape[-1] == 1:
        shape.pop()
    if len(shape) not in (2, 3):
        raise DatasetError(f"has {len(shape)} axes; {axes} are read")
    frames = shape[2] if len(shape) == 3 else 1
    _bounded(frames, shape[1], shape[0], volume)
    _numbers(dtype)
    offset, count = header.get_data_offset(), math.prod(shape)
    if not len(header.binaryblock) <= offset <= MOST_NIFTI_OFFSET:
        raise DatasetError(
            f"its voxels begin at byte {offset}; at most {MOST_NIFTI_OFFSET} is read"
        )
    body += file.read(max(0, offset + count * dtype.itemsize - len(body)))
    # only at the end of the file gzip compares its checksum
    if len(file.read(MOST_NIFTI_REST + 1)) > MOST_NIFTI_REST:
        raise DatasetError("goes on after its voxels")
    array = np.frombuffer(body, dtype, count, offset).reshape(frames, shape[1], shape[0])
    slope, intercept = header.get_slope_inter()
    plain = slope is None or (slope, intercept) == (1, 0)
    planes = (plane if plain else _scaled(plane, slope, intercept) for plane in array)
    whole = (0.0, 255.0) if plain and dtype == np.uint8 else None
    return Stored(frames, planes, whole, windowed=True)


def _syntax(path: Path) -> str:
    """The transfer syntax of a DICOM file: looked at first, as reading a deflated one inflates it
    all.
    """
    from pydicom.filereader import read_file_meta_info

    return str(read_file_meta_info(path)["TransferSyntaxUID"].value)


def _dicom(path: Path, volume: bool, accept_burned_in: bool) -> Stored:
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut, apply_modality_lut, iter_pixels
    from pydicom.uid import UID

    syntax = _syntax(path)
    if syntax not in PLAIN_SYNTAXES | JPEG_SYNTAXES | {RLE_SYNTAX}:
        known = UID(syntax).is_transfer_syntax
        raise DatasetError(
            f"its transfer syntax ({UID(syntax).name if known else 'of an unknown kind'}) is not "
            "decoded here: convert it to Explicit VR Little Endian"
        )
    dataset = dcmread(path, specific_tags=PIXEL_ELEMENTS)
    if "YES" in str(dataset.get("BurnedInAnnotation")).upper() and not accept_burned_in:
        raise DatasetError(
            "says that text is burnt into its pixels (BurnedInAnnotation is YES), which its owner "
            "has not accepted"
        )
    if "PixelData" not in dataset:
        raise DatasetError("has no pixels")
    frames = int(dataset.get("NumberOfFrames", None) or 1)
    rows, columns, bits = dataset.Rows, dataset.Columns, dataset.BitsAllocated
    _bounded(frames, rows, columns, volume)
    kind, samples = str(dataset.PhotometricInterpretation), dataset.SamplesPerPixel
    grey, palette = kind in ("MONOCHROME1", "MONOCHROME2"), kind == "PALETTE COLOR"
    colours = kind == "RGB" or kind.startswith("YBR_")
    if not ((grey or palette) if samples == 1 else colours and samples == 3):
        raise DatasetError("its PhotometricInterpretation and SamplesPerPixel are not read")
    if bits not in (1, 8, 16, 32) or (colours and bits != 8):
        raise DatasetError(f"has {bits} bits for each value, which are not read")
    if syntax not in PLAIN_SYNTAXES:
        _bound_frames(dataset, syntax, frames, rows, columns, samples * bits // 8)
    rescales = _rescales(dataset, frames)
    lookup = bool(dataset.get("ModalityLUTSequence"))
    plugin = "pillow" if syntax in JPEG_SYNTAXES else "pydicom" if syntax == RLE_SYNTAX else ""

    def planes() -> Iterator[np.ndarray]:
        decoded = iter_pixels(dataset, decoding_plugin=plugin)
        for plane, (slope, intercept) in zip(islice(decoded, frames), rescales, strict=True):
            if palette:
                looked_up = apply_color_lut(plane, dataset)
                wide = looked_up.dtype.itemsize == 2
                yield (looked_up >> 8 if wide else looked_up).astype(np.uint8)
            elif grey and lookup:
                yield apply_modality_lut(plane, dataset)
            elif grey and (slope, intercept) != (1, 0):
                yield _scaled(plane, slope, intercept)
            else:
                yield plane

    plain = not lookup and set(rescales) == {(1.0, 0.0)}
    eight = dataset.get("BitsStored") == 8 and dataset.get("PixelRepresentation") == 0
    whole = (0.0, 255.0) if plain and eight else None
    return Stored(frames, planes(), whole, windowed=True, inverted=kind == "MONOCHROME1")


def _rescales(dataset: Any, frames: int) -> list[tuple[float, float]]:
    """Slope and intercept of each frame: its own, else those of all frames, else the file's."""

    def of(item: Any, otherwise: tuple[float, float]) -> tuple[float, float]:
        inner = item.get("PixelValueTransformationSequence") if item is not dataset else [item]
        if not inner:
            return otherwise
        slope, intercept = inner[0].get("RescaleSlope"), inner[0].get("RescaleIntercept")
        if slope is None and intercept is None:
            return otherwise
        found = (float(1 if slope is None else slope), float(intercept or 0))
        if not all(map(math.isfinite, found)) or found[0] == 0:
            raise DatasetError("its rescale slope or intercept is no usable number")
        return found

    shared = of(dataset, (1.0, 0.0))
    for group in dataset.get("SharedFunctionalGroupsSequence") or []:
        shared = of(group, shared)
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if groups and len(groups) != frames:
        raise DatasetError("describes another number of frames than it says it has")
    return [of(group, shared) for group in groups] or [shared] * frames


def _bound_frames(
    dataset: Any, syntax: str, frames: int, rows: int, columns: int, segments: int
) -> None:
    """Each compressed frame must unpack to what the header says: what it unpacks to is bounded."""
    from PIL import Image
    from pydicom.encaps import generate_frames

    found = generate_frames(dataset.PixelData, number_of_frames=frames)
    for number, frame in enumerate(found, start=1):
        if syntax == RLE_SYNTAX:
            # two bytes for each are more than the worst encoder needs
            fits = _unpacked(frame, segments) <= (rows * columns + 2) * segments * 2
        else:
            image = Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000"))
            fits = image.size == (columns, rows)
        if not fits or number > frames:
            raise DatasetError("its compressed frames are not what its header says")


def _unpacked(frame: bytes, segments: int) -> int:
    """How many bytes the runs of an RLE frame make."""
    count, *offsets = struct.unpack("<16L", frame[:64])
    if count != segments or segments > 15:
        raise DatasetError("its compressed frames are not what its header says")
    total = 0
    for start, end in pairwise([*offsets[:segments], len(frame)]):
        while start < end <= len(frame):
            run = frame[start]
            total += run + 1 if run < 128 else 257 - run
            start += run + 2 if run < 128 else 2
    return total
