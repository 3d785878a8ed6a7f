"""Make Ogg files (Vorbis, Opus) repeatable: writers draw the stream's serial number at random, we fix it.

A page carries a CRC over all of it, serial included. A CRC is linear, so the new one is the old one plus the CRC of
what changed: no need to go over the audio again. Layout: RFC 3533, section 6.
"""

from __future__ import annotations

import struct
from functools import lru_cache

SERIAL = 0x41435354
_POLYNOMIAL = 0x04C11DB7
_SERIAL_AT, _CRC_AT, _SEGMENTS_AT, _TABLE_AT = 14, 22, 26, 27


def fix_serial(data: bytes, serial: int = SERIAL) -> bytes:
    """The same Ogg stream, with every page under the serial number `serial`."""
    fixed = bytearray(data)
    start = 0
    while start < len(data):
        assert data[start : start + 4] == b"OggS", "not at an Ogg page"
        num_segments = data[start + _SEGMENTS_AT]
        table = data[start + _TABLE_AT : start + _TABLE_AT + num_segments]
        length = _TABLE_AT + num_segments + sum(table)
        (old,) = struct.unpack_from("<I", data, start + _SERIAL_AT)
        (crc,) = struct.unpack_from("<I", data, start + _CRC_AT)
        crc ^= _crc_of_change(old ^ serial, length - _SERIAL_AT - 4)
        struct.pack_into("<I", fixed, start + _SERIAL_AT, serial)
        struct.pack_into("<I", fixed, start + _CRC_AT, crc)
        start += length
    return bytes(fixed)


def _crc_of_change(change: int, bytes_behind: int) -> int:
    """CRC of a little-endian 32-bit `change` followed by so many zero bytes."""
    crc = int.from_bytes(struct.pack("<I", change), "big")  # the first byte holds the highest powers of x
    for bit in range((bytes_behind + 4).bit_length()):
        if (bytes_behind + 4) >> bit & 1:
            crc = _multiply(crc, _zeros(bit))
    return crc


@lru_cache(maxsize=32)
def _zeros(log2: int) -> int:
    """What 2 ** log2 zero bytes multiply a CRC with: x ** (8 * 2 ** log2)."""
    return 1 << 8 if log2 == 0 else _multiply(_zeros(log2 - 1), _zeros(log2 - 1))


def _multiply(a: int, b: int) -> int:
    """Product of two polynomials over GF(2), modulo the CRC's."""
    product = 0
    for bit in reversed(range(32)):
        product <<= 1
        if product >> 32:
            product ^= 1 << 32 | _POLYNOMIAL
        if b >> bit & 1:
            product ^= a
    return product
