"""A stream encrypted to a passphrase, piece by piece, so that a file of any length needs little
memory. Knows nothing of what is in it.

The key comes of the passphrase and the file's own salt (scrypt, 128 MiB); each piece is sealed by
AES-256-GCM under its number, the last one marked as the last, all of them with the file's head. So
a byte that was changed, a piece that was left out, doubled, moved or taken from another file, an
end that was cut off or added to: each is found at that piece, and nothing of it is given out. What
was given out before is whole up to there only: who reads uses nothing before the end is reached.

    MAGIC | salt (32) | check (32) | pieces of PIECE bytes and their tag, the last one shorter

`check` tells a wrong passphrase from a damaged file. What it costs is fixed by the version in
MAGIC: a file that asks for more memory is not asked how much.
"""

from __future__ import annotations

import os
import unicodedata
from types import TracebackType
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fl_client.errors import BackupError

MAGIC = b"datahub backup 1\n"
SALT, CHECK, TAG = 32, 32, 16
PIECE = 1 << 20
COST = 1 << 17  # of scrypt, at 8 blocks: about half a second and 128 MiB a guess


class Sealer:
    """Writes into `file`. Sealed when the block ends, or of no use where it ends by an error."""

    def __init__(self, file: BinaryIO, passphrase: str):
        salt = os.urandom(SALT)
        key, check = _keys(passphrase, salt)
        self._file, self._key, self._head = file, AESGCM(key), MAGIC + salt + check
        self._held, self._number = bytearray(), 0
        file.write(self._head)

    def write(self, content: bytes) -> int:
        """Take in more of the stream."""
        self._held += content
        while len(self._held) > PIECE:  # what may be the last piece waits
            self._seal(bytes(self._held[:PIECE]), last=False)
            del self._held[:PIECE]
        return len(content)

    def _seal(self, piece: bytes, last: bool) -> None:
        self._file.write(self._key.encrypt(_nonce(self._number, last), piece, self._head))
        self._number += 1

    def __enter__(self) -> Sealer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if kind is None:
            self._seal(bytes(self._held), last=True)


class Opener:
    """Reads what a Sealer wrote. Raises BackupError for another passphrase, and where the stream is
    not what was written.
    """

    def __init__(self, file: BinaryIO, passphrase: str):
        self._file = file
        self._head = file.read(len(MAGIC) + SALT + CHECK)
        if not self._head.startswith(MAGIC):
            raise BackupError("it is no backup that this version of datahub has made")
        salt, check = self._head[len(MAGIC) :][:SALT], self._head[len(MAGIC) + SALT :]
        key, expected = _keys(passphrase, salt)
        if not bytes_eq(check, expected):
            raise BackupError(
                "the passphrase is not the one that it was made with, or its first bytes are "
                "damaged"
            )
        self._key, self._number, self._ended = AESGCM(key), 0, False
        self._open, self._next = b"", self._piece()

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end, which is the end that was written."""
        while not self._open and not self._ended:  # no end was read yet, whatever there is
            self._open = self._opened()
        given, self._open = self._open[:size], self._open[size:]
        return given

    def _piece(self) -> bytes:
        return self._file.read(PIECE + TAG)

    def _opened(self) -> bytes:
        piece, self._next = self._next, self._piece()
        try:
            opened = self._key.decrypt(_nonce(self._number, not self._next), piece, self._head)
        except InvalidTag:
            raise BackupError(
                f"it is damaged or cut off: part {self._number + 1} is not what was written there"
            ) from None
        self._number, self._ended = self._number + 1, not self._next
        return opened


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _keys(passphrase: str, salt: bytes) -> tuple[bytes, bytes]:
    """(the key of the pieces, what tells that it is the right one)."""
    # whichever keyboard typed it; what is no text in UTF-8 counts byte by byte
    typed = unicodedata.normalize("NFC", passphrase).encode(errors="surrogateescape")
    made = Scrypt(salt=salt, length=32 + CHECK, n=COST, r=8, p=1).derive(typed)
    return made[:32], made[32:]
