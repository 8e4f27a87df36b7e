"""Encoded images to arrays of one size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Mode = Literal["RGB", "L"]


class ImageReader:
    """Decodes images and holds them to the size of the first.

    Args:
        mode: `RGB` gives `[H, W, 3]`, `L` (grey) gives `[H, W]`; every image is converted. Of 16 bits a pixel the
            upper 8 are kept.
        size: `[H, W]` to resize every image to, bilinearly, without regard to its proportions; none where empty.
    """

    def __init__(self, mode: Mode, size: list[int]) -> None:
        self.mode, self.size = mode, list(size)
        self._first: tuple[tuple[int, int], str] | None = None

    def read(self, source: bytes | Path, name: str) -> NDArray[np.uint8]:
        """One image, uint8.

        Args:
            source: an encoded image, or its file.
            name: what an error calls it.

        Raises:
            DataError: it cannot be decoded, its range of values is not known, or it is of another size than the first
                and none was asked for.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as opened:
                opened.info.pop("transparency", None)  # it is dropped, and Pillow would remark upon that
                image = _eight_bits(opened, name).convert(self.mode)
        except DataError:
            raise
        except Exception as e:  # of any type: Pillow's decoders trust what a file says of itself
            reason = "no known format" if isinstance(e, UnidentifiedImageError) else e
            raise DataError(f"{name}: cannot be read as an image ({reason}); replace it, or take it away") from None
        if self.size:
            image = image.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        elif self._first is None:
            self._first = (image.height, image.width), name
        elif (image.height, image.width) != self._first[0]:
            (height, width), first = self._first
            raise DataError(
                f"{name} is {image.height} x {image.width} pixels, {first} is {height} x {width}; make all images of "
                f"one size, or say data.image_size = [{height}, {width}], which resizes them"
            )
        return np.asarray(image, np.uint8)


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Pillow's own conversion would cut every value above 255, so that 16-bit pictures came out white."""
    from PIL import Image

    # As "I" Pillow opens 32 bits, but also greys of PGM, and in old versions of PNG, which hold 16 at most.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"{name}: its pixels are {'32-bit integers' if image.mode == 'I' else 'floating point'}, and no file says "
            "which value is white; convert it to 8 or 16 bits"
        )
    return image
