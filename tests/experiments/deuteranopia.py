"""The distance of two colours to the most common colour-blindness, deuteranopia.

The matrix is that of Machado, Oliveira and Fernandes, A physiologically-based model for
simulation of color vision deficiency (IEEE TVCG 15, 2009), for deuteranomaly of severity 1; it
applies to linear RGB. Distances are Euclidean in CIE L*a*b* (ΔE of 1976), white point D65.
"""

import numpy as np
from matplotlib.colors import to_rgb

_DEUTERANOPIA = np.array([
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
])  # fmt: skip
_XYZ = np.array([
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
])  # fmt: skip
_WHITE = np.array([0.95047, 1.0, 1.08883])


def lab(rgb):
    """The L*a*b* coordinates of a colour in linear RGB."""
    x = _XYZ @ rgb / _WHITE
    small = (6 / 29) ** 3
    f = np.where(x > small, np.cbrt(np.maximum(x, small)), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def seen(colour):
    """The L*a*b* coordinates of a colour of matplotlib as a person with deuteranopia sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return lab(np.clip(_DEUTERANOPIA @ linear, 0, 1))


def distance(first, second):
    return float(np.linalg.norm(seen(first) - seen(second)))
