"""From a path to text: standard input, compression, byte order marks, and the detection of legacy encodings.

UTF-8 is read without a word. Any other encoding is used if it is named, announced by a byte order mark, or recognised
from the letters that it gives; with too few letters to tell, the file is refused and `encoding` must be given.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import sys
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from dln.errors import InputError

__all__ = ["STANDARD_INPUT", "Text", "decoded", "read_bytes", "source_name"]

STANDARD_INPUT = ("-", "/dev/stdin")
"""Paths that mean standard input."""


@dataclass(frozen=True, slots=True)
class Text:
    """The content of a text file, decoded while it is read: with one emoji a whole text takes four bytes a character.

    Attributes:
        data: the bytes, which are valid in the encoding.
        encoding: name of the encoding.
        known_by: "given", "mark" (byte order), "utf-8" or "guess".
    """

    data: bytes
    encoding: str
    known_by: str

    def lines(self, newline: str = "", skipped: int = 0) -> io.TextIOWrapper:
        """The text as a stream of lines with their ends, without a byte order mark and the first `skipped` lines."""
        stream = io.TextIOWrapper(io.BytesIO(self.data), self.encoding, newline=newline)
        if stream.read(1) != "\ufeff":
            stream.seek(0)
        for _ in range(skipped):
            while not stream.readline().endswith("\n"):
                pass  # a carriage return alone ends no line here
        return stream

    @property
    def text(self) -> str:
        """All of it."""
        return self.lines().read()


def source_name(path: str) -> str:
    """The name of a file for messages."""
    return "standard input" if path in STANDARD_INPUT else Path(path).name or path


def read_bytes(path: str) -> bytes:
    """The content of a file or of standard input, decompressed.

    Raises:
        InputError: no such file, not readable, empty, damaged, or an archive of several files.
    """
    try:
        data = _standard_input() if path in STANDARD_INPUT else Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            "there is no such file", where=path, got="nothing", expected="a file of examples", fix="check the path"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise InputError("the file cannot be read", where=path, got=reason or str(error)) from error
    try:
        return _decompressed(data, path)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError) as error:
        raise InputError(
            "the compressed file is damaged",
            where=path,
            got=str(error) or type(error).__name__,
            fix="compress it again",
        ) from error


def _standard_input() -> bytes:
    buffer = getattr(sys.stdin, "buffer", None)  # a text stream may stand in for standard input
    return sys.stdin.read().encode() if buffer is None else buffer.read()


def _decompressed(data: bytes, path: str) -> bytes:
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if data.startswith(b"BZh"):
        return bz2.decompress(data)
    if data.startswith(b"\xfd7zXZ\x00"):
        return lzma.decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstandard(data, path)
    if not data.startswith(b"PK\x03\x04") or not path.lower().endswith(".zip"):  # .xlsx is an archive as well
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [
            info.filename
            for info in archive.infolist()
            if not info.is_dir()
            and not info.filename.startswith("__MACOSX")
            and not Path(info.filename).name.startswith(".")
        ]
        if len(names) != 1:
            raise InputError(
                "the archive does not hold one file",
                where=path,
                got=f"{len(names)} files: {', '.join(names[:5])}" if names else "no file",
                expected="an archive of one file",
                fix="unpack it and name the file",
            )
        return archive.read(names[0])


def _zstandard(data: bytes, path: str) -> bytes:
    try:
        arrow = cast("Any", import_module("pyarrow"))
    except ImportError as error:
        raise InputError("reading .zst files needs pyarrow", where=path, fix="pip install 'dln[parquet]'") from error
    return arrow.input_stream(io.BytesIO(data), compression="zstd").read()


def decoded(data: bytes, path: str, encoding: str | None = None) -> Text:
    """Decode the content of a text file.

    Args:
        data: the content.
        path: for messages.
        encoding: of the file; None detects it.

    Raises:
        InputError: empty, not in this encoding, NUL bytes, or an encoding that cannot be recognised.
    """
    name = source_name(path)
    if not data.strip(b"\xef\xbb\xbf \t\r\n"):
        fix = "pipe the examples in again, or name their file" if path in STANDARD_INPUT else None
        raise InputError("the file is empty", where=name, got=f"{len(data)} bytes", expected="an example", fix=fix)
    marked = _mark(data)
    if encoding is None and marked is None:
        marked = _wide_without_mark(data)
    chosen = encoding or marked or "utf-8"
    known_by = "given" if encoding is not None else "mark" if marked is not None else "utf-8"
    if not _is_valid(data, chosen):
        found = _detected(data) if chosen == "utf-8" and encoding is None else None
        if found is None:
            raise _undecodable(data, name, chosen)
        chosen, known_by = found, "guess"
    text = Text(data, codecs.lookup(chosen).name if known_by != "guess" else chosen, known_by)
    _refuse_nul(text, name)
    return text


_PIECE = 1 << 20


def _is_valid(data: bytes, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for start in range(0, len(data), _PIECE):
            decoder.decode(data[start : start + _PIECE])
        decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    return True


def _mark(data: bytes) -> str | None:
    """The encoding that a byte order mark announces."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None


def _wide_without_mark(data: bytes) -> str | None:
    """UTF-16 of mostly Latin text: every second byte is NUL."""
    sample = data[:2000]
    if len(sample) < 8 or len(data) % 2:
        return None
    odd, even = sample[1::2].count(0) / len(sample[1::2]), sample[::2].count(0) / len(sample[::2])
    if odd > 0.6 and even < 0.1:
        return "utf-16-le"
    return "utf-16-be" if even > 0.6 and odd < 0.1 else None


def _refuse_nul(text: Text, name: str) -> None:
    if b"\x00" not in text.data:
        return
    found = {number: line.count("\x00") for number, line in enumerate(text.lines("\n"), 1) if "\x00" in line}
    if found:
        raise InputError(
            "the file holds NUL characters",
            where=f"{name}, line {min(found)}",
            got=f"{sum(found.values())} of them",
            expected="a text file",
            fix="remove them, or export the file as text again",
        )


def _undecodable(data: bytes, name: str, encoding: str) -> InputError:
    likely = _likely(data)
    try:
        data.decode(encoding)
        line, got = 1, "bytes that cannot be decoded"
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        line, got = data.count(b"\n", 0, start) + 1, f"byte 0x{data[start]:02x} at byte {start}"
        if likely == "cp1252":
            got += f" ({data[start : start + 1].decode(likely)!r} in {likely})"
    return InputError(
        f"the file is not valid {encoding}",
        where=f"{name}, line {line}",
        got=got,
        expected="text in UTF-8, or in the encoding that is given",
        fix=f'save the file as UTF-8, or name its encoding: encoding="{likely}"',
    )


_LETTERS: dict[str, tuple[str, ...]] = {
    "latin": (
        "äöüß", "àâæçéèêëîïôœùûüÿ", "áéíñóúü", "ãáâàçéêíóôõú", "àèéìíòóù", "åäöæøé", "ëïéèóöü", "ąćęłńóśźż",
        "áčďéěíňóřšťúůýž", "áäčďéíľĺňóôŕšťúýž", "áéíóöőúüű", "ăâîșşțţ", "čćđšž", "çğıİiöşü", "āčēģīķļņšūž",
        "ąčęėįšųūž", "õäöüšž", "áðéíóúýþæö",
    ),
    "cyrillic": ("оеаинтсрвлкмдпуя", "оаинетврікслмуд", "аеиотнрсвлъкдмп"),
    "greek": ("αοιετσνηυρπκμλόίέάήύώςθ",),
    "hebrew": ("יוהלאמרתבנשעםדחקפכן",),
    "arabic": ("اليمنوهترعدبفسكقح،",),
}  # fmt: skip
"""Frequent letters beyond ASCII, per language of a script."""

_MARKS = frozenset("„“”‚‘’–—…€«»¿¡°§·№´`\u00a0")
_CANDIDATES = (
    *("cp1252", "cp1250", "cp1254", "cp1257", "iso8859-2", "iso8859-15", "mac_roman", "cp850"),
    *("cp1251", "koi8-r", "koi8-u", "cp866", "iso8859-5", "cp1253", "iso8859-7", "cp1255", "cp1256"),
    *("cp932", "euc-jp", "gb18030", "big5", "cp949"),
)
"""Encodings to recognise; of equal ones the first is taken."""

_WIDE = ("cp932", "euc-jp", "gb18030", "big5", "cp949")
_FREQUENT = {
    "gb18030": (
        "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多日都三小军二无同么经法当起与"
        "好看学进种将还分此心前面又定见只主没公从今回很己最但现满意味差服务牛肉"
    ),
    "big5": (
        "的一是不了人我在有他這為之大來以個中上們到說國和地也子時道出而要於就下得可你年生自會那後能對著事其裡所去行過家十用發天如然作方成者多日都三小軍二無同麼經法當起與"
        "好看學進種將還分此心前面又定見只主沒公從今回很己最但現滿意味差服務"
    ),
    "cp949": (
        "이다는을가에의하고지은를한기로도사아어나자시인그리대수있서니해일들정보여라게만스부주안전구원장제상과요면문무내오우비소동배송빠좋"
    ),
}


def _is_frequent(character: str, encoding: str) -> bool:
    if encoding in ("cp932", "euc-jp"):
        return "\u3041" <= character <= "\u30fe"
    return character in _FREQUENT[encoding]


def _wide_score(text: str, encoding: str) -> float:
    """How much a text looks like Chinese, Japanese or Korean: common characters, and frequent ones among them."""
    total = common = frequent = 0
    for character in text:
        if character < "\x80":
            continue
        total += 1
        name = unicodedata.name(character, "")
        kana, hangul = "KATAKANA" in name or "HIRAGANA" in name, name.startswith("HANGUL SYLLABLE")
        if name.startswith("HALFWIDTH") or not name:
            continue
        if "\u3000" <= character <= "\u3020" or "\uff00" <= character <= "\uff65" or character in _MARKS:
            common += 1
        elif kana or hangul:
            common += encoding in (("cp932", "euc-jp") if kana else ("cp949",))
        elif name.startswith("CJK UNIFIED") and encoding != "cp949":
            common += _level_one(character, encoding)
        frequent += _is_frequent(character, encoding)
    return 0.0 if not total else 0.7 * common / total + 0.6 * frequent / total


def _level_one(character: str, encoding: str) -> bool:
    """Whether a Han character is in the frequent half of its national standard."""
    codec, last = {"gb18030": ("gb2312", 0xD7), "big5": ("big5", 0xC6)}.get(encoding, ("shift_jis", 0x98))
    try:
        return character.encode(codec)[0] <= last
    except UnicodeEncodeError:
        return False


def _narrow_score(text: str) -> float:
    """How much a text looks like one language of an alphabet: frequent letters, in words of one script and case."""
    counts = dict.fromkeys((language for group in _LETTERS.values() for language in group), 0)
    total, bad = 0, 0.0
    before = " "
    for character in text:
        if character >= "\x80":
            total += 1
            low = character.lower()
            if not character.isalpha():
                bad += character not in _MARKS or (before.isalpha() and character in "¿¡°§·´`")
            elif before.isalpha():
                capital = before.islower() and character.isupper()
                bad += capital or (before < "\x80" and character >= "\u0250")  # within a word, or two scripts in one
                bad += before in "ךםןףץ"  # Hebrew letters that end a word
                bad += 0.4 * ("\x80" <= before < "\u0250" and character < "\u0250")  # two accented letters in a row
            for language in counts:
                counts[language] += low in language
        elif character.isalpha() and before >= "\u0250" and before.isalpha():
            bad += 1
        before = character
    return 0.0 if not total else max(counts.values()) / max(1, total - _marks(text)) - bad / total


def _marks(text: str) -> int:
    return sum(character in _MARKS for character in text)


def _sample(data: bytes, size: int = 40_000) -> bytes:
    """The first lines with bytes beyond ASCII."""
    lines: list[bytes] = []
    length = 0
    for line in data.splitlines():
        if not line.isascii():
            lines.append(line)
            length += len(line)
            if length > size:
                break
    return b"\n".join(lines)


def _scores(data: bytes) -> dict[str, float]:
    scores: dict[str, float] = {}
    sample = _sample(data)
    for encoding in _CANDIDATES:
        try:
            text = sample.decode(encoding)
        except UnicodeDecodeError:
            continue
        scores[encoding] = _wide_score(text, encoding) if encoding in _WIDE else _narrow_score(text)
    return scores


_LEAST_BYTES = 3
"""Bytes beyond ASCII from which an encoding is recognised."""
_LEAST_SCORE = 0.5


def _detected(data: bytes) -> str | None:
    """The encoding whose text looks most like writing, if there is enough of it and all of the file is valid."""
    if sum(byte >= 0x80 for byte in _sample(data)) < _LEAST_BYTES:
        return None
    scores = _scores(data)
    for encoding in sorted(scores, key=lambda name: -round(scores[name], 2)):
        if scores[encoding] < _LEAST_SCORE:
            return None
        if _is_valid(data, encoding):
            return encoding
    return None


def _likely(data: bytes) -> str:
    """The encoding to suggest."""
    scores = _scores(data)
    return max(scores, key=lambda name: round(scores[name], 2)) if scores else "cp1252"
