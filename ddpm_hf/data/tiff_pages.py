"""The pages of a TIFF: where they are, and each as a TIFF of its own, which any reader of images takes.

A page is copied with its tags and its strips or tiles as they are, so that nothing is decoded here. The copy is never a
BigTIFF, of which PIL reads only those of one order of bytes.
"""

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from ddpm_hf.data.faults import CorruptImageError

ENDINGS = (".tif", ".tiff")
MOST_PAGES = 2**20

Read = Callable[[int, int], bytes]
"""From an offset and a size to bytes of the file, fewer at its end."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_LONG, _LONG8 = 4, 16
_LETTERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_SUBFILE, _OLD_SUBFILE, _COMPRESSION, _DESCRIPTION = 254, 255, 259, 270
_OFFSETS, _COUNTS = (273, 324), (279, 325)
_ELSEWHERE = (330, 513, 514, 34665, 34853, 40965)
"""Tags that point to other parts of the file: further images, EXIF, and pictures of old-style JPEG."""


class Page(NamedTuple):
    """Where a page of a TIFF is.

    Args:
        directory: Offset of its tags.
        shift: Bytes by which its values lie behind those that the tags name, in ImageJ's stacks.
    """

    directory: int
    shift: int = 0


class _Form(NamedTuple):
    """How numbers are written in a file."""

    order: str
    big: bool

    def number(self, raw: bytes) -> int:
        return int.from_bytes(raw, "little" if self.order == "<" else "big")


def pages_of(read: Read) -> tuple[list[Page], int]:
    """The pages of a TIFF, and how many further ones are copies of them in a lower resolution, or masks.

    No page at all where the file is no TIFF, or a damaged one, of which its reader says more.
    """
    try:
        form = _form_of(read)
        word = 8 if form.big else 4
        offset = form.number(read(8 if form.big else 4, word))
        pages, seen, beside = list[Page](), set[int](), 0
        while offset and offset not in seen and len(seen) < MOST_PAGES:
            seen.add(offset)
            tags, following = _directory(read, form, offset)
            kinds = [form.number(_raw(read, form, tags[tag])[:4]) for tag in (_SUBFILE,) if tag in tags]
            old = [form.number(_raw(read, form, tags[_OLD_SUBFILE])[:2])] if _OLD_SUBFILE in tags else []
            if any(kind & 5 for kind in kinds) or 2 in old:
                beside += 1
            else:
                pages.append(Page(offset))
            offset = following
        if len(pages) == 1 and not beside:
            pages = _of_imagej(read, form, pages[0])
    except (ValueError, struct.error, KeyError):
        return [], 0
    return pages, beside


def page_alone(read: Read, page: Page) -> bytes:
    """A page as a TIFF file.

    Raises:
        CorruptImageError: it is damaged, or of a form that cannot be copied.
    """
    try:
        form = _form_of(read)
        tags, _ = _directory(read, form, page.directory)
        kept = {tag: entry for tag, entry in tags.items() if tag not in _ELSEWHERE}
        values = {tag: _raw(read, form, entry) for tag, entry in kept.items()}
        places = next(tag for tag in _OFFSETS if tag in kept)
        lengths = next(tag for tag in _COUNTS if tag in kept)
        starts, counts = _numbers(form, kept[places], values[places]), _numbers(form, kept[lengths], values[lengths])
    except (ValueError, struct.error, KeyError, StopIteration, OverflowError) as error:
        raise CorruptImageError("its page of the TIFF is damaged, or compressed in the old way of JPEG") from error
    pieces = [read(start + page.shift, count) if count else b"" for start, count in zip(starts, counts, strict=True)]
    if [len(piece) for piece in pieces] != counts:
        raise CorruptImageError("its page of the TIFF is truncated")
    try:
        for tag, (kind, number, field) in kept.items():
            if kind == _LONG8:
                values[tag] = struct.pack(f"{form.order}{number}I", *_numbers(form, kept[tag], values[tag]))
                kept[tag] = (_LONG, number, field)
        return _written(form.order, {tag: entry[:2] for tag, entry in kept.items()}, values, places, pieces)
    except struct.error as error:
        raise CorruptImageError("its page of the TIFF has more than 4 GiB") from error


def _form_of(read: Read) -> _Form:
    start = read(0, 4)
    form = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}.get(start)
    if form is None:
        raise ValueError("no TIFF")
    return _Form(*form)


# Of a tag: type, number of values, and the field that holds them or their offset.
_Entry = tuple[int, int, bytes]


def _directory(read: Read, form: _Form, offset: int) -> tuple[dict[int, _Entry], int]:
    """The tags of a page, and the offset of the next page's, 0 for none."""
    head, size, word = (8, 20, 8) if form.big else (2, 12, 4)
    count = form.number(_whole(read, offset, head))
    if count > 4096:
        raise ValueError("no directory")
    raw = _whole(read, offset + head, count * size + word)
    entries = struct.iter_unpack(f"{form.order}HH{'Q8s' if form.big else 'I4s'}", raw[: count * size])
    return {tag: (kind, number, field) for tag, kind, number, field in entries}, form.number(raw[-word:])


def _raw(read: Read, form: _Form, entry: _Entry) -> bytes:
    """The bytes of a tag's values."""
    kind, number, field = entry
    size = _SIZES[kind] * number
    return field[:size] if size <= len(field) else _whole(read, form.number(field), size)


def _whole(read: Read, offset: int, size: int) -> bytes:
    found = read(offset, size)
    if len(found) < size:
        raise ValueError("truncated")
    return found


def _numbers(form: _Form, entry: _Entry, raw: bytes) -> list[int]:
    return list(struct.unpack(f"{form.order}{entry[1]}{_LETTERS[entry[0]]}", raw))


def _of_imagej(read: Read, form: _Form, page: Page) -> list[Page]:
    """The images of a file of ImageJ that lie behind one page, all of one size and not compressed."""
    tags, _ = _directory(read, form, page.directory)
    said = _raw(read, form, tags[_DESCRIPTION]) if _DESCRIPTION in tags else b""
    found = re.search(rb"^images=(\d+)", said, re.MULTILINE) if said.startswith(b"ImageJ=") else None
    counts = next((tags[tag] for tag in _COUNTS if tag in tags), None)
    is_plain = _COMPRESSION not in tags or form.number(_raw(read, form, tags[_COMPRESSION])) == 1
    if found is None or counts is None or not is_plain:
        return [page]
    size = sum(_numbers(form, counts, _raw(read, form, counts)))
    return [Page(page.directory, index * size) for index in range(min(int(found[1]), MOST_PAGES))]


def _written(
    order: str, tags: dict[int, tuple[int, int]], values: dict[int, bytes], places: int, pieces: list[bytes]
) -> bytes:
    """A file of one page: header, directory, values that do not fit into it, and the pieces of the image.

    Args:
        order: That of bytes in numbers, as `struct` has it.
        tags: Type and number of the values of each.
        values: Bytes of the values of each.
        places: The tag of the places of the pieces.
        pieces: Strips or tiles.
    """
    values = {**values, places: bytes(4 * len(pieces))}  # room; what is in it follows from where all else is
    position = 8 + 2 + 12 * len(tags) + 4
    at: dict[int, int] = {}
    for tag in sorted(tags):
        if len(values[tag]) > 4:
            at[tag], position = position, position + len(values[tag]) + len(values[tag]) % 2
    offsets: list[int] = []
    for piece in pieces:
        offsets.append(position)
        position += len(piece)
    values[places] = struct.pack(f"{order}{len(offsets)}I", *offsets)
    parts = [b"II" if order == "<" else b"MM", struct.pack(f"{order}HIH", 42, 8, len(tags))]
    for tag in sorted(tags):
        kind, number = (_LONG, len(pieces)) if tag == places else tags[tag]
        field = struct.pack(f"{order}I", at[tag]) if tag in at else values[tag].ljust(4, b"\0")
        parts += [struct.pack(f"{order}HHI", tag, kind, number), field]
    parts += [bytes(4), *(values[tag] + bytes(len(values[tag]) % 2) for tag in sorted(at))]
    return b"".join([*parts, *pieces])
