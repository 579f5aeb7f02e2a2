"""Letters of the world's scripts drawn from the Noto fonts: many classes with few examples each, as in Omniglot."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import InputError
from thrifty.data.sources import log

SIZE = 28
FEWEST_FONTS = 4
STYLES = ("Regular", "Bold", "Italic", "BoldItalic")  # all that fonts-noto-core holds; fonts-noto-extra has the others
_FONT_PIXELS = 20  # em height: most letters then fit the square, and capitals stay larger than small letters
_SMALLEST_FONT = 6


@dataclass(frozen=True, eq=False)
class LetterSet:
    """Drawings of letters; a class is a letter, its examples are fonts, and every drawing occurs once.

    Parameters
    ----------
    images
        Ink 0-255 on black, uint8, [N, H, H].
    labels
        Letter of each drawing, int64, [N], an index into ``letters``.
    script, font
        Script and font of each drawing, int64, [N], indices into ``scripts`` and ``fonts``.
    letters
        The C letters, in the order of their code points.
    scripts, fonts
        Names such as ``Greek`` and ``NotoSerif-Bold``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    script: NDArray[np.int64]
    font: NDArray[np.int64]
    letters: tuple[str, ...]
    scripts: tuple[str, ...]
    fonts: tuple[str, ...]


def letters(size: int = SIZE) -> LetterSet:
    """Load the letters, drawing them first if need be (some ten seconds, once).

    Parameters
    ----------
    size
        Height and width in pixels; other sizes than 28 are resampled from it.

    Raises
    ------
    InputError
        If ``size`` is not positive.
    NotFoundError
        If the fonts can't be fetched.
    """
    if size < 1:
        raise InputError(f"size is {size}, expected a positive number of pixels")
    from thrifty.data.fetch import fetch

    with np.load(fetch("letters") / "letters.npz", allow_pickle=False) as bundle:
        drawings = bundle["images"] if size == SIZE else _resized(bundle["images"], size)
        names = {key: tuple(str(name) for name in bundle[key]) for key in ("letters", "scripts", "fonts")}
        return LetterSet(drawings, bundle["labels"], bundle["script"], bundle["font"], **names)


def draw_all(roots: Mapping[str, Path], folder: Path) -> None:
    """Build step of the asset: draw every letter of every font, keep letters with at least four different drawings.

    A drawing that another font or an earlier letter already has is dropped, so that the same outline under
    two names (Latin A, Greek Alpha) makes one class, and no training example reappears as a test one. Where the
    package is installed, other packages have put more fonts into its directory: only the styles that it brings
    itself are drawn, so that the set is the same on every machine.
    """
    folder_of_fonts = roots["fonts-noto-core"] / "usr" / "share" / "fonts" / "truetype" / "noto"
    fonts = sorted(path for path in folder_of_fonts.glob("*.ttf") if path.stem.rpartition("-")[2] in STYLES)
    np.savez_compressed(folder / "letters.npz", **_collect(fonts))


def _collect(fonts: list[Path]) -> dict[str, Any]:
    carriers: dict[int, list[int]] = {}
    for index, path in enumerate(fonts):
        for code in _letters_of(path):
            carriers.setdefault(code, []).append(index)
    wanted = sorted(code for code, having in carriers.items() if len(having) >= FEWEST_FONTS)
    log.info("drawing %d letters from %d fonts (some ten seconds, once)", len(wanted), len(fonts))
    pens = [_Pen(path) for path in fonts]
    seen: set[bytes] = set()
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    script: list[int] = []
    font: list[int] = []
    kept: list[str] = []
    scripts: list[str] = []
    for code in wanted:
        drawn: list[tuple[int, NDArray[np.uint8]]] = []
        new: set[bytes] = set()
        for index in carriers[code]:
            image = pens[index].draw(chr(code))
            key = image.tobytes()
            if image.any() and key not in seen and key not in new:
                new.add(key)
                drawn.append((index, image))
        if len(drawn) < FEWEST_FONTS:
            continue
        seen |= new
        name = _script(code)
        if name not in scripts:
            scripts.append(name)
        for index, image in drawn:
            images.append(image)
            labels.append(len(kept))
            script.append(scripts.index(name))
            font.append(index)
        kept.append(chr(code))
    return {
        "images": np.stack(images),
        "labels": np.array(labels, dtype=np.int64),
        "script": np.array(script, dtype=np.int64),
        "font": np.array(font, dtype=np.int64),
        "letters": np.array(kept),
        "scripts": np.array(scripts),
        "fonts": np.array([path.stem for path in fonts]),
    }


def _letters_of(path: Path) -> Iterator[int]:
    from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

    with TTFont(path, lazy=True) as font:
        codes = sorted(font.getBestCmap() or {})
    return (code for code in codes if unicodedata.category(chr(code)).startswith("L"))


def _script(code: int) -> str:
    from fontTools.unicodedata import script, script_name  # type: ignore[import-untyped]

    return str(script_name(script(chr(code)))).replace("_", " ")


class _Pen:
    """Draws single letters of one font, centred, shrunk only where they would not fit."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.sizes: dict[int, Any] = {}

    def draw(self, letter: str) -> NDArray[np.uint8]:
        from PIL import Image, ImageDraw

        pixels = _FONT_PIXELS
        left, top, right, bottom = self._font(pixels).getbbox(letter)
        while max(right - left, bottom - top) > SIZE and pixels > _SMALLEST_FONT:
            pixels -= 2
            left, top, right, bottom = self._font(pixels).getbbox(letter)
        image = Image.new("L", (SIZE, SIZE))
        corner = ((SIZE - (right - left)) // 2 - left, (SIZE - (bottom - top)) // 2 - top)
        ImageDraw.Draw(image).text(corner, letter, fill=255, font=self._font(pixels))
        return np.asarray(image, dtype=np.uint8)

    def _font(self, pixels: int) -> Any:
        from PIL import ImageFont

        if pixels not in self.sizes:
            # The basic layout engine is in every Pillow, so the drawings don't depend on an optional library.
            self.sizes[pixels] = ImageFont.truetype(self.path, pixels, layout_engine=ImageFont.Layout.BASIC)
        return self.sizes[pixels]


def _resized(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    from PIL import Image

    scaled = [Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image, dtype=np.uint8) for image in scaled])
