"""Pictures in messages: compressed files and raw pixels. Sizes are read without decoding."""

from __future__ import annotations

import struct

import cv2
import numpy as np

from deploy.replay.sources.messages import CorruptMessage, Picture, picture
from perception.datasets.files import decode_image, jpeg_size

# Raw encoding -> bytes per pixel, and OpenCV's conversion to RGB.
_RAW = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
}


def compressed_picture(stamp: int, frame: str, content: bytes) -> Picture:
    """Make a picture from the bytes of a JPEG or PNG file; the message's format field is not trusted.

    Raises:
        CorruptMessage: the header is damaged. Other damage is found when the picture is decoded.
    """
    try:
        size = jpeg_size(content) if content.startswith(b"\xff\xd8") else _png_size(content)
    except ValueError:
        raise CorruptMessage("a picture that cannot be decoded") from None

    def decode() -> np.ndarray:
        try:
            return decode_image(content)
        except (ValueError, cv2.error):
            raise CorruptMessage("a picture that cannot be decoded") from None

    return picture(stamp, frame, decode, size, content)


def raw_picture(stamp: int, frame: str, encoding: str, size: tuple[int, int], step: int, data: np.ndarray) -> Picture:
    """Make a picture from rows of pixels.

    Args:
        size: width, height in pixels.
        step: bytes from one row to the next.
        data: (height * step,) uint8.
    """
    if encoding not in _RAW:
        raise CorruptMessage(
            "an unsupported encoding; 8-bit RGB and BGR, with or without alpha, and grey are supported"
        )
    (width, height), (channels, conversion) = size, _RAW[encoding]
    if step < width * channels or data.size != height * step:
        raise CorruptMessage("data of another size than the picture")

    def decode() -> np.ndarray:
        pixels = data.reshape(height, step)[:, : width * channels].reshape(height, width, channels)
        return pixels.copy() if conversion is None else cv2.cvtColor(np.ascontiguousarray(pixels), conversion)

    return picture(stamp, frame, decode, size)


def _png_size(content: bytes) -> tuple[int, int]:
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < 24:
        raise ValueError("neither JPEG nor PNG")
    width, height = struct.unpack_from(">II", content, 16)
    return width, height
