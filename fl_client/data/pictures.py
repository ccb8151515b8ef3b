"""How a hospital's pictures become numbers: a file and public rules in, uint8 out. Knows nothing of
patients, jobs or ledgers.

Nothing is fitted on patients: windows and sizes are declared. Of a file only its pixels are used,
in this order: values to 0..255 by the declared window, MONOCHROME1 turned round, colours to the
declared channels, then the declared size. Pillow resizes in whole numbers, so that the same file
and versions give the same bytes everywhere. Colour profiles are not followed, and pixels are taken
as square.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_client.data.picture_files import Stored, open_picture, patient_of
from fl_client.errors import DatasetError

FITS = ("stretch", "pad", "crop")
FIELDS = ("channels", "size", "window", "fit")
MOST_OF_A_SIDE = 4096
MOST_VALUES = 1 << 26  # of one picture as the model gets it
MOST_BETWEEN = 1 << 30  # bytes of a volume between its two resizings


@dataclass(frozen=True)
class PictureRules:
    """What every picture of a dataset becomes: uint8 [channels, *size], size (h, w) or (d, h, w).

    window: the values that become 0 and 255, what lies outside is clipped, NaN is 0; in the unit of
    the modality (DICOM, NIfTI) or of the file (NPY, PNG and TIFF of more than 8 bits). Without one,
    8 bits are taken as they are and 16 of PNG and TIFF by their whole range; other values are
    refused. Colours and 8 bits of PNG, JPEG and TIFF have no unit and are never windowed.
    fit: "stretch" to the size, "pad" with black around it, "crop" its middle; the depth of a volume
    is always stretched, since slices are seldom as far apart as pixels.
    """

    channels: int
    size: tuple[int, ...]
    window: tuple[float, float] | None = None
    fit: str = "stretch"

    def __post_init__(self) -> None:
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise DatasetError(f"channels={self.channels!r} must be 1 (grey) or 3 (colours)")
        if (
            not isinstance(self.size, list | tuple)
            or len(self.size) not in (2, 3)
            or any(type(n) is not int or not 1 <= n <= MOST_OF_A_SIDE for n in self.size)
            or self.channels * math.prod(self.size) > MOST_VALUES
        ):
            raise DatasetError(
                f"size={self.size!r} must be [height, width] or [depth, height, width], whole "
                f"numbers from 1 to {MOST_OF_A_SIDE}, and {MOST_VALUES} values in all at most"
            )
        object.__setattr__(self, "size", tuple(self.size))
        if self.window is not None:
            if (
                not isinstance(self.window, list | tuple)
                or len(self.window) != 2
                or any(isinstance(x, bool) or not isinstance(x, int | float) for x in self.window)
                or not all(-1e30 <= x <= 1e30 for x in self.window)  # NaN is not
                or not self.window[0] < self.window[1]
            ):
                raise DatasetError(
                    f"window={self.window!r} must be null or [low, high], two finite numbers of "
                    "which the first is smaller"
                )
            # 50 and 50.0 must be the same rules, whoever wrote them
            object.__setattr__(self, "window", tuple(float(x) for x in self.window))
        if not isinstance(self.fit, str) or self.fit not in FITS:
            raise DatasetError(f"fit={self.fit!r} must be one of {', '.join(FITS)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a picture by these rules."""
        return (self.channels, *self.size)

    def as_dict(self) -> dict[str, Any]:
        """The rules as JSON."""
        return {
            "channels": self.channels,
            "size": list(self.size),
            "window": None if self.window is None else list(self.window),
            "fit": self.fit,
        }

    @classmethod
    def from_dict(cls, value: Any) -> PictureRules:
        """The rules in `value`; raises DatasetError naming the field that is wrong."""
        if not isinstance(value, Mapping) or set(value) != set(FIELDS):
            given = sorted(map(str, value)) if isinstance(value, Mapping) else value
            raise DatasetError(
                f"pictures={given!r} must have exactly the fields {', '.join(FIELDS)}"
            )
        return cls(**value)


def read_picture(path: Path, rules: PictureRules, *, accept_burned_in: bool = False) -> np.ndarray:
    """uint8 [channels, *size] of one PNG, JPEG, TIFF, DICOM, NIfTI or NPY file.

    `accept_burned_in`: the owner has looked at the pictures that say of themselves that text is
    burnt into their pixels, and accepts them. Raises DatasetError, one sentence naming the file.
    Not to be called by several threads at once (survey.py has processes for that).
    """
    return np.asarray(
        _named(
            path,
            lambda: _picture(open_picture(path, len(rules.size) == 3, accept_burned_in), rules),
        )
    )


def patient_id(path: Path) -> str:
    """PatientID of a DICOM file, without the blanks around it: it stays in the room.

    Raises DatasetError, one sentence naming the file.
    """
    return str(_named(path, lambda: patient_of(path)))


def _named(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns; whatever it raises becomes a DatasetError naming the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote what stands in a file
            return read()
    except DatasetError as error:
        why = str(error)
    except ImportError:
        why = "pictures need more libraries: pip install 'datahub[pictures]'"
    except MemoryError:
        why = "needs more memory than there is"
    except PermissionError:
        why = "may not be read by this user"
    except NotImplementedError:
        why = "is of a kind that is not decoded here"
    except Exception as error:  # noqa: BLE001 - any kind, in words that quote the file
        why = f"damaged or cut short ({type(error).__name__})"
    raise DatasetError(f"{path.name}: {why}")


def _picture(stored: Stored, rules: PictureRules) -> np.ndarray:
    height, width = rules.size[-2:]
    if stored.frames * height * width * rules.channels > MOST_BETWEEN:
        raise DatasetError(f"has {stored.frames} planes, too many for {height} x {width} pixels")
    planes = [_sized(_eight_bits(plane, stored, rules), rules) for plane in stored.planes]
    if len(planes) != stored.frames:
        raise DatasetError(f"has {len(planes)} planes of {stored.frames}")
    if len(rules.size) == 2:
        return planes[0]
    volume = np.stack(planes, axis=1)
    deep = [_resized(one.reshape(len(planes), -1), rules.size[0], height * width) for one in volume]
    return np.stack(deep).reshape(rules.shape)


def _eight_bits(plane: np.ndarray, stored: Stored, rules: PictureRules) -> np.ndarray:
    if plane.ndim == 3:
        return plane
    window = rules.window if stored.windowed and rules.window is not None else stored.whole
    if window is None:
        raise DatasetError(f"its values ({plane.dtype}) need a window, and the rules have none")
    low, high = window
    if plane.dtype != np.uint8 or window != (0, 255):
        values = np.clip(np.nan_to_num(plane.astype(np.float64), nan=low), low, high)
        plane = np.floor((values - low) / (high - low) * 255 + 0.5).astype(np.uint8)
    return 255 - plane if stored.inverted else plane


def _sized(plane: np.ndarray, rules: PictureRules) -> np.ndarray:
    """[h, w] or [h, w, 3] to [channels, height, width]."""
    from PIL import Image

    height, width = rules.size[-2:]
    h, w = plane.shape[:2]
    if rules.channels == 1 and plane.ndim == 3:
        plane = np.asarray(Image.fromarray(np.ascontiguousarray(plane)).convert("L"))
    if rules.fit == "pad":
        inner = min(height, _share(h, width, w)), min(width, _share(w, height, h))
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        whole = np.zeros((height, width, *plane.shape[2:]), np.uint8)
        whole[top : top + inner[0], left : left + inner[1]] = _resized(plane, *inner)
        plane = whole
    elif rules.fit == "crop":
        across, down = min(w, h * width / height) / 2, min(h, w * height / width) / 2
        box = (w / 2 - across, h / 2 - down, w / 2 + across, h / 2 + down)
        plane = _resized(plane, height, width, box)
    else:
        plane = _resized(plane, height, width)
    if plane.ndim == 3:
        return np.ascontiguousarray(np.moveaxis(plane, -1, 0))
    return np.repeat(plane[None], rules.channels, axis=0)


def _share(side: int, most: int, of: int) -> int:
    """side * most / of as a whole number from 1."""
    return max(1, (2 * side * most + of) // (2 * of))


def _resized(
    plane: np.ndarray, height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """By Pillow: each pixel a weighted mean of all those that it covers."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box))
