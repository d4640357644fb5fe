"""The tool "search": BM25 (Robertson and Zaragoza 2009) over a local corpus, by the library bm25s."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyturn.envs.extras import how_to_install
from polyturn.envs.tools.tool import Tool, ToolError

_MOST_SHOWN = 20
_WORDS = re.compile(r"\w+")


def search_tool(
    corpus: str | Path | Iterable[str | Mapping[str, Any]],
    *,
    name: str = "search",
    results: int = 3,
    excerpt: int = 500,
    description: str = "Searches documents by words and shows the best, each cut to its beginning",
) -> Tool:
    """A tool that searches documents.

    Equal scores keep the order of the corpus, so that the same query always gives the same text.

    Args:
        corpus: Documents: texts, or mappings with "text" and perhaps "title"; or a JSONL file of mappings, or a folder,
            each of whose .txt and .md files is one document.
        name: The tool's name.
        results: Most documents a query shows, at most 20.
        excerpt: Characters shown of each.
        description: What the agent is told.

    Raises:
        ImportError: bm25s is not installed.
        ValueError: There is no document, or an option is out of its range.
    """
    try:
        import bm25s
    except ImportError as error:
        raise ImportError(f"search_tool needs bm25s: {how_to_install('tools')}") from error
    if not 1 <= results <= _MOST_SHOWN or excerpt < 1:
        raise ValueError(
            f"search_tool: expected 1 <= results <= {_MOST_SHOWN} and excerpt >= 1, got {results} and {excerpt}"
        )
    documents = [_document(each) for each in _read(corpus)]
    if not any(_words(f"{title} {text}") for title, text in documents):
        raise ValueError(f"search_tool: expected documents with words in them, got {len(documents)} without")
    index = bm25s.BM25()
    index.index([_words(f"{title} {text}") for title, text in documents], show_progress=False)
    known = set(index.vocab_dict)

    def search(arguments: Mapping[str, Any]) -> str:
        query = arguments.get("query")
        if set(arguments) != {"query"} or not isinstance(query, str):
            raise ToolError(f"{name}: expected the argument query as text")
        words = [word for word in _words(query) if word in known]
        if not words:
            return "no document has any of these words"
        scores = np.asarray(index.get_scores(words))
        best = [place for place in np.argsort(-scores, kind="stable")[:results] if scores[place] > 0]
        return "\n\n".join(
            f"[{rank}] {title}\n{text[:excerpt]}{'...' if len(text) > excerpt else ''}"
            for rank, (title, text) in enumerate((documents[place] for place in best), 1)
        )

    schema = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "words to look for"}},
        "required": ["query"],
        "additionalProperties": False,
    }
    return Tool(name, description, schema, search, "query")


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.casefold())


def _read(corpus: Any) -> Iterable[Any]:
    if not isinstance(corpus, str | Path):
        return list(corpus)
    path = Path(corpus).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".md"))
        return [
            {"title": str(file.relative_to(path)), "text": file.read_text("utf-8", errors="replace")} for file in files
        ]
    if not path.is_file():
        raise ValueError(f"search_tool: expected a JSONL file or a folder, got {str(path)!r}, which does not exist")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _document(value: Any) -> tuple[str, str]:
    if isinstance(value, str):
        return "", value
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        return str(value.get("title", "")), value["text"]
    raise ValueError(f'search_tool: expected documents as text or as mappings with "text", got {value!r:.80}')
