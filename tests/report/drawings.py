"""What tests ask of a drawn figure."""

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text


def drawn(figure: Figure | str) -> Figure:
    """Fail where there is a reason instead of a figure."""
    assert isinstance(figure, Figure), figure
    return figure


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def check_legible(figure: Figure) -> None:
    """Nothing is cut off, and no letters are smaller than 8 points."""
    figure.draw_without_rendering()
    covered, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert covered.x0 >= 0
    assert covered.y0 >= 0
    assert covered.x1 <= width
    assert covered.y1 <= height
    assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 8


def lightness(colour: str | tuple[float, float, float]) -> float:
    """CIE L* (0 black, 100 white) of an sRGB colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance
