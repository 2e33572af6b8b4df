"""Fonts for pictures: Pillow's own, and what the computer has for other scripts. None is shipped."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont

# By file name; Pillow looks for them where Windows, macOS and Linux keep fonts. The first that has every letter is taken.
SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "segoeui.ttf", "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
    "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc",
    "NotoSansThai-Regular.ttf", "LeelawUI.ttf", "Thonburi.ttc", "NotoSansDevanagari-Regular.ttf", "Nirmala.ttf", "Nirmala.ttc",
    "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoEmoji-Regular.ttf", "seguiemj.ttf", "Symbola.ttf",
)  # fmt: skip
_NO_LETTER = "\U000fffff"  # for private use: every font draws its box for a missing letter


@lru_cache(maxsize=256)
def _open(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)  # type: ignore[return-value]
    except OSError:
        return None


@lru_cache(maxsize=8192)
def _has(name: str, letter: str) -> bool:
    font = _open(name, 24)
    return font is not None and bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | None:
    """The first font that has all of the text's letters, or None; `size` in pixels."""
    for name in ("", *SYSTEM_FONTS):
        if all(letter.isspace() or _has(name, letter) for letter in text):
            return _open(name, size)
    return None


def default_font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, for Latin labels; `size` in pixels."""
    font = _open("", size)
    assert font is not None
    return font
