"""E2M1: numbers of four bits, a sign, two bits of exponent and one of mantissa (OCP Microscaling Formats 1.0)."""

import numpy as np

_VALUES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
_OF_HALF = np.concatenate([_VALUES, -_VALUES])

OF_BYTE = np.stack([np.tile(_OF_HALF, 16), np.repeat(_OF_HALF, 16)], axis=1)
"""(256, 2) float32: the two values of a byte, the low half first."""
