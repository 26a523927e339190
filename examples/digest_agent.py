"""An agent that digests a file or a folder: what it is, how it is built, and what it says.

    witsd agent add digest -- python examples/digest_agent.py
    witsd ask digest README.md

A plain function, so it may read and compute as it likes: it has a thread of its own, and a cancelled run
ends at the next thing it says or checks.
"""

from __future__ import annotations

import ast
import codecs
import csv
import difflib
import hashlib
import io
import json
import os
import re
import shlex
import stat
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from witsd_client import Agent, AgentFailed, InvalidParams, NotFound, SyncRun

MAX_TEXT_BYTES = 8 << 20
MAX_FILES = 20_000
CHUNK = 256 << 10
SKIPPED_FOLDERS = {".git", ".hg", ".venv", "venv", "node_modules", "__pycache__", ".tox", ".hypothesis"}

KINDS = {
    ".md": "Markdown", ".rst": "reStructuredText", ".txt": "text", ".py": "Python", ".js": "JavaScript",
    ".ts": "TypeScript", ".go": "Go", ".rs": "Rust", ".c": "C", ".h": "C header", ".cpp": "C++",
    ".java": "Java", ".rb": "Ruby", ".sh": "shell script", ".html": "HTML", ".css": "CSS", ".sql": "SQL",
    ".json": "JSON", ".toml": "TOML", ".yaml": "YAML", ".yml": "YAML", ".csv": "CSV", ".xml": "XML",
}  # fmt: skip
PROSE = {"Markdown", "reStructuredText", "text"}
MAGIC = {
    b"\x89PNG": "PNG image", b"\xff\xd8\xff": "JPEG image", b"GIF8": "GIF image", b"%PDF": "PDF document",
    b"PK\x03\x04": "ZIP archive", b"\x1f\x8b": "gzip data", b"\x7fELF": "ELF program",
    b"SQLite format 3": "SQLite database", b"\0asm": "WebAssembly", b"ID3": "MP3 audio", b"OggS": "Ogg audio",
}  # fmt: skip
STOP_WORDS = {
    "English": "the of and to in is that it for as with was on are be this by not or an from at which you",
    "German": "der die und das ist nicht ein eine zu den mit von auf für im dem des sich auch werden als",
    "French": "le la les et des est un une dans que pour pas qui sur avec au ce par plus sont du ne",
    "Spanish": "el la los las y de que en un una es por con para no se del al como más su lo",
}
NOTES = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
DEFINITION = re.compile(
    r"^\s*(?:export\s+|default\s+|pub(?:\([^)]*\))?\s+|async\s+|static\s+|public\s+|abstract\s+)*"
    r"(?P<what>function|class|func|fn|struct|enum|trait|interface|impl|module)\s+(?P<name>[\w:<>. ]{1,60}\w)"
)

agent = Agent("digest", version="1")
agent.skill("digest", "Digests a file or a folder: kind, size, outline, what it says, what is left to do")


@agent.run
def digest(run: SyncRun) -> None:
    paths = [*named(run), *(resolve(run, file) for file in run.files)]
    if not paths:
        raise InvalidParams("which file or folder? For example: witsd ask digest README.md")
    for path in paths:
        print(f"reading {path}")  # whatever is printed goes to the agent's log
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                digest_folder(run, path)
            elif stat.S_ISREG(mode):
                digest_file(run, path)
            else:
                raise AgentFailed(f"{path} is neither a file nor a folder: reading it might never end")
        except FileNotFoundError:
            raise missing(path) from None
        except OSError as error:
            raise AgentFailed(f"cannot read {path}: {error.strerror}") from None


def named(run: SyncRun) -> list[Path]:
    """The paths that the text names: all of it as one path, else each of its words."""
    text = run.text.strip()
    if not text or (whole := resolve(run, text)).exists():
        return [whole] if text else []
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    paths = [resolve(run, word) for word in words]
    # "please digest README.md": words that are no path are not missed when others are one.
    return [path for path in paths if path.exists()] or [paths[-1] if len(words) > 1 else whole]


def resolve(run: SyncRun, text: str) -> Path:
    path = Path(os.path.expanduser(text))
    return path if path.is_absolute() else Path(run.cwd or os.getcwd()) / path


def missing(path: Path) -> NotFound:
    near: list[str] = []
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return NotFound(f"there is no file or folder {path}{hint}", {"kind": "file", "id": str(path)})


# ---- a file -------------------------------------------------------------------------------------------


def digest_file(run: SyncRun, path: Path) -> None:
    size = path.stat().st_size
    run.say(f"# {path.name}\n\n")
    if size == 0:
        run.say("An empty file.\n")
        return
    with path.open("rb") as file:
        head = file.read(CHUNK)
        binary = binary_kind(head)
        if binary:
            run.say(f"{binary}, {human(size)}: no text to digest.\n")
            run.say(f"SHA-256 {sha256(run, head, file)}\n")
            return
        parts, read = [head], len(head)
        while read < MAX_TEXT_BYTES and (part := file.read(min(CHUNK, MAX_TEXT_BYTES - read))):
            run.check()
            parts.append(part)
            read += len(part)
    text, encoding = decode(b"".join(parts))
    lines = text.splitlines()
    words = len(text.split())
    kind = kind_of(path, text)
    facts = [kind, human(size), many(len(lines), "line"), many(words, "word"), encoding]
    if kind in PROSE and (language := language_of(text)):
        facts.append(language)
    run.say(", ".join(facts) + ".\n")
    if read < size:
        run.say(f"It is too large to read whole: this is about the first {human(read)} of {human(size)}.\n")
    section(run, "Outline", outline(kind, text, lines), 40)
    if kind == "Python":
        text = docstring(text)
    if kind in PROSE or kind == "Python":
        section(run, "In its own words", (f"> {s}" for s in telling(run, prose(text), 4)), 4)
    section(run, "Left to do", notes(lines), 10)


def section(run: SyncRun, title: str, entries: Iterator[str], most: int) -> None:
    """Say a heading and the entries under it as they are found; nothing at all where there are none."""
    count = 0
    for entry in entries:
        count += 1
        if count == 1:
            run.say(f"\n## {title}\n\n")
        if count <= most:
            run.say(entry + "\n")
    if count > most:
        run.say(f"... and {count - most:,} more\n")


def binary_kind(head: bytes) -> str:
    """What kind of binary file begins like this; empty for text."""
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return ""
    control = sum(byte < 9 or 13 < byte < 27 for byte in head[:8192])
    return "binary data" if b"\0" in head or control > len(head[:8192]) / 50 else ""


def sha256(run: SyncRun, head: bytes, file: io.BufferedReader) -> str:
    digest = hashlib.sha256(head)
    while part := file.read(CHUNK):
        run.check()
        digest.update(part)
    return digest.hexdigest()


def decode(data: bytes) -> tuple[str, str]:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace"), "UTF-16"
    if data.startswith(codecs.BOM_UTF8):
        return data.decode("utf-8-sig", "replace"), "UTF-8 with a mark"
    try:
        # Not final: where the file was cut, half a character may stand at the end.
        text = codecs.getincrementaldecoder("utf-8")().decode(data)
        return text, "ASCII" if text.isascii() else "UTF-8"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "not UTF-8 (read as Latin-1)"


def kind_of(path: Path, text: str) -> str:
    if kind := KINDS.get(path.suffix.lower()):
        return kind
    if text.startswith("#!"):
        first = text.partition("\n")[0]
        return "Python" if "python" in first else "shell script" if first.endswith("sh") else "script"
    return {"Makefile": "Makefile", "Dockerfile": "Dockerfile"}.get(path.name, "text")


def language_of(text: str) -> str:
    """The natural language whose small words are most frequent; empty when none stands out."""
    words = Counter(re.findall(r"[^\W\d_]+", text.lower()[:200_000]))
    total = sum(words.values())
    shares = {name: sum(words[w] for w in small.split()) for name, small in STOP_WORDS.items()}
    best = max(shares, key=lambda name: shares[name])
    return best if total >= 20 and shares[best] > total * 0.12 else ""


def outline(kind: str, text: str, lines: list[str]) -> Iterator[str]:
    if kind == "Markdown":
        yield from headings(lines)
    elif kind == "Python":
        yield from python_outline(text)
    elif kind in ("JSON", "TOML"):
        yield from keys(kind, text)
    elif kind == "CSV":
        rows = list(csv.reader(io.StringIO(text)))
        yield f"- {len(rows) - 1:,} rows of {len(rows[0])} columns: {', '.join(rows[0])}"
    elif kind not in PROSE:
        for number, line in enumerate(lines, 1):
            if found := DEFINITION.match(line[:300]):
                yield f"- {found['what']} {found['name'].strip()} (line {number})"


def headings(lines: list[str]) -> Iterator[str]:
    fence = ""
    for line in lines:
        mark = line.lstrip()[:3]
        if mark in ("```", "~~~") and fence in ("", mark):
            fence = "" if fence else mark
        elif not fence and (found := re.match(r"(#{1,6})\s+(.+?)\s*#*$", line)):
            yield "  " * (len(found[1]) - 1) + "- " + found[2]


def python_outline(text: str) -> Iterator[str]:
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        yield f"- it does not parse: {error}"
        return

    def walk(body: list[ast.stmt], depth: int) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield f"{'  ' * depth}- class {node.name} (line {node.lineno})"
                yield from walk(node.body, depth + 1)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                kind = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
                names = ", ".join(argument.arg for argument in node.args.args)
                yield f"{'  ' * depth}- {kind} {node.name}({names}) (line {node.lineno})"

    yield from walk(module.body, 0)


def docstring(text: str) -> str:
    try:
        return ast.get_docstring(ast.parse(text)) or ""
    except (SyntaxError, ValueError, RecursionError):
        return ""


def keys(kind: str, text: str) -> Iterator[str]:
    try:
        data = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        yield f"- it does not parse: {error}"
        return
    if isinstance(data, list):
        yield f"- a list of {len(data):,}"
    elif isinstance(data, dict):
        for key, value in data.items():
            size = f" ({len(value):,})" if isinstance(value, dict | list) else ""
            yield f"- {key}: {type(value).__name__}{size}"


def prose(text: str) -> str:
    """Text without what Markdown adds: code blocks, tables, headings, markup, link targets."""
    text = re.sub(r"^(```|~~~).*?^\1.*?$", "\n", text, flags=re.S | re.M)
    kept = [
        "" if re.match(r"\s*(#|\||=+$|-+$|<)|\s{4,}\S", line) else re.sub(r"^\s*([-*>]|\d+\.)\s+", "\n", line)
        for line in text.splitlines()
    ]
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(kept))
    return re.sub(r"(?<!\w)(\*{1,3}|_{1,3}|`)(\S.*?)\1(?!\w)", r"\2", text)


def telling(run: SyncRun, text: str, count: int) -> Iterator[str]:
    """The sentences with the most frequent words of the text, in its order; what comes early weighs more."""
    sentences: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(paragraph.split())
        found = re.split(r"(?<=[.!?])\s+(?=[\"'(A-ZÀ-Ý0-9])", flat)
        # What begins in the middle belongs to something that was left out, such as a block of code.
        sentences += [one for one in found if 4 <= len(one.split()) <= 60 and not one[0].islower()]
    common = {word for small in STOP_WORDS.values() for word in small.split()}
    bags = [{w for w in re.findall(r"[^\W\d_]{3,}", s.lower()) if w not in common} for s in sentences]
    weights = Counter(word for bag in bags for word in bag)
    scores = []
    for place, bag in enumerate(bags):
        if place % 1000 == 0:
            run.check()
        mean = sum(weights[word] for word in bag) / (len(bag) + 3)  # + 3: a short sentence is no summary
        scores.append((mean * (1.5 - 0.5 * place / len(bags)), place))
    for place in sorted(place for _, place in sorted(scores, reverse=True)[:count]):
        yield sentences[place]


def notes(lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if NOTES.search(line):
            yield f"- line {number}: {line.strip()[:120]}"


# ---- a folder -----------------------------------------------------------------------------------------


def digest_folder(run: SyncRun, folder: Path) -> None:
    run.say(f"# {folder.resolve().name or folder}/\n\n")
    readme = next((entry for entry in sorted(folder.iterdir()) if entry.stem.lower() == "readme"), None)
    if readme is not None and readme.is_file():
        with readme.open("rb") as file:
            text, _ = decode(file.read(CHUNK))
        first = next((" ".join(p.split()) for p in re.split(r"\n\s*\n", prose(text)) if p.strip()), "")
        if first:
            run.say(f"> {first[:600]}\n\n")
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    below: Counter[str] = Counter()
    largest: list[tuple[int, str]] = []
    skipped: Counter[str] = Counter()
    files = folders = unreadable = 0
    waiting = [folder]
    while waiting and files < MAX_FILES:
        run.check()
        try:
            entries = sorted(os.scandir(waiting.pop()), key=lambda entry: entry.name)
        except OSError:
            unreadable += 1
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders += 1
                if entry.name in SKIPPED_FOLDERS or entry.name.endswith("_cache"):
                    skipped[entry.name] += 1
                else:
                    waiting.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                files += 1
                if files % 2000 == 0:
                    run.think(f"{files:,} files so far\n")
                size = entry.stat(follow_symlinks=False).st_size
                name = os.path.relpath(entry.path, folder)
                kind = Path(entry.name).suffix.lower() or "(none)"
                counts[kind] += 1
                sizes[kind] += size
                below[name.split(os.sep)[0] + "/" if os.sep in name else "."] += 1
                largest = sorted([*largest, (size, name)], reverse=True)[:5]
    run.say(f"{many(files, 'file')} in {many(folders, 'folder')}, {human(sum(sizes.values()))}.\n")
    if waiting:
        run.say(f"It is too large to look at whole: this is about the first {files:,} files.\n")
    if skipped:
        run.say(f"Not looked into: {', '.join(sorted(skipped))}.\n")
    if unreadable:
        run.say(f"{many(unreadable, 'folder')} could not be read.\n")
    section(run, "Where", (f"- {name}: {many(count, 'file')}" for name, count in below.most_common()), 15)
    kinds = (f"- {kind}: {many(count, 'file')}, {human(sizes[kind])}" for kind, count in counts.most_common())
    section(run, "By extension", kinds, 12)
    section(run, "Largest", (f"- {name}, {human(size)}" for size, name in largest), 5)


def many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def human(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:,.0f} bytes" if unit == "bytes" else f"{size:,.1f} {unit}"


if __name__ == "__main__":
    agent.serve()
