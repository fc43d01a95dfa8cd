"""What a file really is whose content does not match its name, such as a failed download."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

HEAD = 4096  # bytes that are read
AGAIN = "download it again"
OTHER = "give a .safetensors, .pth or .json file in its place"
ARCHIVES = {
    b"\x1f\x8b": "a gzip archive", b"BZh": "a bzip2 archive", b"\xfd7zXZ\x00": "an xz archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!": "a RAR archive", b"\x28\xb5\x2f\xfd": "a zstd archive",
}  # fmt: skip
FORMATS = {
    b"GGUF": "a GGUF file", b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy array", b"%PDF": "a PDF document",
    b"\x89PNG": "an image", b"\xff\xd8\xff": "an image",
}  # fmt: skip


def described(path: Path) -> str | None:
    """What the file is and what to do, such as "is a Git LFS pointer ..."; None if it is of no known kind."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head.strip(b"\0"):
        return f"is empty; {AGAIN}" if not head else f"holds only zeros; {AGAIN}"
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    for magic, name in ARCHIVES.items():
        if head.startswith(magic):
            return f"is {name}; unpack it and give the file inside"
    if tarfile.is_tarfile(path):
        return "is a tar archive; unpack it and give the file inside"
    for magic, name in FORMATS.items():
        if head.startswith(magic):
            return f"is {name}; {OTHER}"
    return _text(head)


def is_safetensors(path: Path) -> bool:
    """Whether a file starts like a safetensors file: eight bytes with the length of the header, then a JSON object."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _zip(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return f"is cut short after {path.stat().st_size:,} bytes; {AGAIN}"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        return f"is a damaged PyTorch file; {AGAIN}"
    inside = f" ({names[0]})" if names else ""
    return f"is a zip archive; unpack it and give the file inside{inside}"


def _text(head: bytes) -> str | None:
    """What kind of text it is; None for binary content."""
    text = head.decode("utf-8", errors="ignore").lstrip("\ufeff \t\r\n")
    if b"\0" in head or len(text) < len(head) / 2:
        return None
    lower = text.lower()
    if lower.startswith("version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull`, or download it from the hub"
    if lower.startswith(("<!doctype html", "<html")) or "<html" in lower:
        return (
            f"is an HTML page, not the file itself: {AGAIN}, from the address of the file (on the hub: .../resolve/...)"
        )
    begins = " ".join(text.split())[:80]
    if lower.startswith("<"):
        return f"is an XML message, not the file itself ({_shown(begins)}): {AGAIN}"
    if lower.startswith(("{", "[")):
        return f"is a JSON text, not the file itself ({_shown(begins)}): {AGAIN}"
    return f"is a text, not the file itself ({_shown(begins)}): {AGAIN}"


def _shown(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", text)
