"""The page that shows trajectories: nothing is lost in it, and nothing that a model wrote can act in it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shown

from polyturn.envs.preference import Preference, by_return
from polyturn.envs.store import CorruptRecord, Store, read, read_groups
from polyturn.envs.trajectory import Group
from polyturn.envs.viewing.book import ROW, bind, thinned
from polyturn.envs.viewing.page import asset, program, write_page
from polyturn.envs.viewing.serving import ViewServer
from polyturn.envs.viewing.sources import NothingToShow, find


class Parsed(HTMLParser):
    """The elements of a page, their attributes, and the text inside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.elements[-1][2].append(data)

    def scripts(self) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(text)) for tag, attributes, text in self.elements if tag == "script"]


def inert(page: Path) -> dict[str, Any]:
    """The data blocks of a page by their id, unpacked."""
    scripts = Parsed(page.read_text()).scripts()
    blocks = {str(a["id"]): text for a, text in scripts if a.get("type") == "text/plain"}
    return {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in blocks.items()}


def rows(index: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(ROW, row, strict=True)) for row in zip(*(index["columns"][name] for name in ROW), strict=True)]


@pytest.mark.parametrize("form", ["page", "folder"])
def test_hostile_text_makes_no_element_and_no_script(form: Any, tmp_path: Path) -> None:
    store = shown.hostile(tmp_path / "hostile.jsonl")
    page = write_page([store], tmp_path / "out.html", title=shown.MARKUP + shown.HIDDEN, form=form)
    text = page.read_text()
    parsed = Parsed(text)
    assert {tag for tag, _, _ in parsed.elements} <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "noscript",
        "script",
    }
    assert [name for _, attributes, _ in parsed.elements for name in attributes if name.startswith("on")] == []
    running = [body for attributes, body in parsed.scripts() if attributes.get("type") != "text/plain"]
    assert running == [program()]
    assert re.search("[\x00-\x09\x0b-\x1f\x7f\u202e\ud800-\udfff]", text.replace(program(), "")) is None
    for side in (tmp_path / "out-data").glob("*.js"):
        assert re.fullmatch(r'polyturnChunk\(\d+,"[A-Za-z0-9+/=]+"\);\n', side.read_text())


@pytest.mark.parametrize(("form", "more"), [("page", ""), ("folder", " 'strict-dynamic'")])
def test_the_policy_admits_the_one_script_and_style_and_no_network(form: Any, more: str, tmp_path: Path) -> None:
    page = write_page([shown.ordinary(tmp_path / "s.jsonl")], tmp_path / "out.html", form=form)
    parsed = Parsed(page.read_text())
    (policy,) = [a["content"] for _, a, _ in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashed = {
        tag: f"'sha256-{base64.b64encode(hashlib.sha256(''.join(text).encode()).digest()).decode()}'"
        for tag, attributes, text in parsed.elements
        if tag in ("style", "script") and attributes.get("type") != "text/plain"
    }
    assert rules == {
        "default-src": "'none'", "script-src": hashed["script"] + more, "style-src": hashed["style"],
        "img-src": "data:",
        "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip


def test_the_program_sets_text_and_never_markup() -> None:
    text = program()
    wrong = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|srcdoc|javascript:|</script|\.style\s*="
    )
    assert re.search(wrong, text) is None
    assert "http://www.w3.org/2000/svg" in text
    assert re.findall(r"https?://(?!www\.w3\.org)", text + asset("viewer.css")) == []


def test_everything_in_a_store_is_in_the_page_bit_for_bit(tmp_path: Path) -> None:
    store = shown.ordinary(tmp_path / "s.jsonl", groups=30)  # three chunks
    blocks = inert(write_page([store], tmp_path / "out.html", form="page"))
    index, stored = blocks["index"], list(read(store))
    found = rows(index)
    assert [row["number"] for row in found] == [*range(1, 121)]
    assert len({row["chunk"] for row in found}) == 3
    for row, trajectory in zip(found, stored, strict=True):
        episode = blocks[f"chunk-{row['chunk']}"][row["slot"]]
        assert [turn[:3] for turn in episode["turns"]] == [
            [t.observation, t.action, t.reward] for t in trajectory.turns
        ]
        assert (episode["final"], episode["error"]) == (trajectory.final_observation, trajectory.error)
        assert row["reward"] == (trajectory.total_reward if trajectory.valid else None)
        assert (row["tool_errors"], row["valid"]) == (int(row["member"] == 1), trajectory.valid)
        tokens = blocks[f"chunk-{index['tokens'][str(row['chunk'])]}"][row["slot"]]
        for packed, turn in zip(tokens, trajectory.turns, strict=True):
            arrays = [
                np.frombuffer(base64.b64decode(part), kind)
                for part, kind in zip(packed, ("<i4", "<i4", "<f4"), strict=True)
            ]
            assert [a.tobytes() for a in arrays] == [
                turn.context_ids.tobytes(),
                turn.action_ids.tobytes(),
                turn.logps.tobytes(),
            ]


def test_what_json_cannot_say_is_text(tmp_path: Path) -> None:
    """An infinite return, and a seed that a browser would round."""
    index = inert(write_page([shown.hostile(tmp_path / "s.jsonl")], tmp_path / "o.html", form="page"))["index"]
    assert [row["reward"] for row in rows(index)] == ["inf", None] * 3
    assert [row["seed"] for row in rows(index)] == [str(2**60 + n) for n in range(6)]


def test_groups_are_those_of_the_store_with_what_the_annotator_says(tmp_path: Path) -> None:
    def longest(group: Group) -> Preference:
        size = len(group)
        return Preference(np.full((size, size), np.nan), "human")

    stores = [shown.ordinary(tmp_path / "a.jsonl"), shown.branched(tmp_path / "b.jsonl")]
    index = inert(write_page(stores, tmp_path / "o.html", form="page"))["index"]
    groups = [group for store in stores for group in read_groups(store)]
    assert [(g["rows"][1] - g["rows"][0], g["branched_at"]) for g in index["groups"]] == [
        (len(group), group.branched_at) for group in groups
    ]
    assert [g["source"] for g in index["groups"]] == ["reward"] * 4
    expected = [[None if np.isnan(x) else x for x in line] for line in by_return(groups[0]).matrix]
    assert [[None if x == "nan" else x for x in line] for line in index["groups"][0]["matrix"]] == expected
    other = inert(write_page(stores, tmp_path / "o.html", annotate=longest, form="page"))["index"]
    assert {(g["source"], g["by"].rpartition(".")[2]) for g in other["groups"]} == {("human", "longest")}


def test_the_same_stores_make_the_same_page(tmp_path: Path) -> None:
    store = shown.ordinary(tmp_path / "s.jsonl")
    pages = [write_page([store], tmp_path / name, title="t", form="page").read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_a_large_store_goes_to_side_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyturn.envs.viewing.page.LARGEST_PAGE", 1000)
    page = write_page([shown.ordinary(tmp_path / "s.jsonl")], tmp_path / "out.html")
    assert "chunk-0" not in {a.get("id") for a, _ in Parsed(page.read_text()).scripts()}
    assert sorted(path.name for path in (tmp_path / "out-data").iterdir()) == ["0.js", "1.js"]


def test_a_run_leads_from_its_figures_to_its_episodes(tmp_path: Path) -> None:
    run = shown.run_folder(tmp_path / "run")
    book = bind(find([run]), title="t")
    (made,) = book.index["runs"]
    curves = {(curve["place"], curve["name"]): curve for curve in made["curves"]}
    assert curves["iterations", "mean_return"]["points"] == [[0, 0.2], [1, 0.4], [2, pytest.approx(0.6)]]
    assert curves["iterations", "evaluation.success.value"]["of"] == {"0": [], "1": [0], "2": [1]}
    loss = curves["iteration-2/train", "loss"]
    assert (len(loss["points"]), loss["stores"]) == (40, [1])  # the line that is being written is left out
    assert not [name for _, name in curves if name in ("note", "step", "number", "evaluation.success.low")]
    book.chunks.close()


def test_results_bring_their_figures_report_and_pictures(tmp_path: Path) -> None:
    book = bind(find([shown.results_folder(tmp_path / "r")]), title="t")
    (result,) = book.index["results"]
    assert [cell["values"] for cell in result["cells"]] == [{"success": 0.5}, {"success": 0.6}]
    assert result["report"].endswith(shown.MARKUP + "\n")
    assert base64.b64decode(result["pictures"][0]["data"]).startswith(b"<svg")
    book.chunks.close()


@pytest.mark.parametrize("content", [{}, {"notes.jsonl": '{"a": 1}\n'}, {"results.json": "[]", "run.txt": ""}])
def test_a_folder_of_other_things_is_refused(content: dict[str, str], tmp_path: Path) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(NothingToShow, match="expected a store of trajectories"):
        find([tmp_path])
    with pytest.raises(FileNotFoundError):
        find([tmp_path / "missing"])


def test_damage_is_refused_or_skipped_as_asked(tmp_path: Path) -> None:
    store = shown.ordinary(tmp_path / "s.jsonl")
    data = store.read_bytes().replace(b"What is 1 + 2", b"What is 1 + 7", 1)
    store.write_bytes(data)
    with pytest.raises(CorruptRecord):
        write_page([store], tmp_path / "o.html")
    assert not (tmp_path / "o.html").exists()
    with pytest.warns(RuntimeWarning, match="damaged"):
        page = write_page([store], tmp_path / "o.html", corrupt="skip", form="page")
    assert len(rows(inert(page)["index"])) == 11


def test_thinning_keeps_every_stretchs_extremes() -> None:
    points = [[n, float(n % 7)] for n in range(10_000)]
    points[1234][1], points[5678][1] = 99.0, -99.0
    kept = thinned(points, 200)
    assert len(kept) <= 200
    assert [points[1234], points[5678]] == [p for p in kept if abs(p[1]) == 99.0]
    assert kept == sorted(kept)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[ViewServer, Path]]:
    store = shown.ordinary(tmp_path / "s.jsonl")
    server = ViewServer([store], title="live")
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server, store
    server.close()
    thread.join()


def get(url: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def test_the_server_follows_what_is_written(served: tuple[ViewServer, Path]) -> None:
    server, store = served
    _, data, headers = get(server.url + "index")
    assert len(json.loads(gzip.decompress(data))["columns"]["store"]) == 12
    assert get(server.url + "version")[1].decode() == headers["X-Version"]
    with Store(store) as writer:
        writer.append(shown.episode(9, 0, "The answer is 9.", 1.0))
    server._due = 0.0
    assert get(server.url + "version")[1].decode() != headers["X-Version"]
    index = json.loads(gzip.decompress(get(server.url + "index")[1]))
    assert len(index["columns"]["store"]) == 13
    text = gzip.decompress(get(f"{server.url}chunk/{index['columns']['chunk'][-1]}")[1])
    assert b"The answer is 9." in text


def test_the_server_answers_this_machines_browser_only(served: tuple[ViewServer, Path]) -> None:
    """Another site's name that resolves to this machine, a guess of the path, a path outside it."""
    server, _ = served
    assert server.url.startswith("http://127.0.0.1:")
    status, body, headers = get(server.url)
    assert status == 200
    assert b"data-mode=server" in body
    assert "connect-src 'self'" in headers["Content-Security-Policy"]
    assert get(server.url, Host="evil.example:80")[0] == 404
    root = server.url.rsplit("/", 2)[0]
    for path in (
        "/",
        "/index",
        "/guess/index",
        f"{server.url[len(root) :]}chunk/999",
        f"{server.url[len(root) :]}../etc/passwd",
    ):
        assert get(root + path)[0] == 404
