"""The house rules that no linter checks."""

from __future__ import annotations

import ast
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diffretriever

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = Path(diffretriever.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FORBIDDEN = [
    r"trust_remote_code\s*=\s*True",
    r"\bpickle\b",
    r"\btorch\.load\((?!.*weights_only=True)",
    r"allow_pickle\s*=\s*True",
]
#: Calls that run code, or unpack files to places of their own choosing. `x.eval()` of a module is no such call.
FORBIDDEN_CALLS = {
    "__import__", "compile", "eval", "exec", "extract", "extractall", "unpack_archive", "unsafe_load", "full_load",
    "system", "popen", "read_pickle", "hub.load", "jit.load",
}  # fmt: skip
FORBIDDEN_MODULES = {
    "cloudpickle", "dill", "joblib", "marshal", "pickle", "runpy", "shelve", "subprocess", "tarfile", "zipfile",
}  # fmt: skip
HEAVY = ["nltk", "pyarrow", "qdrant_edge", "rich", "scipy", "torch", "transformers", "typer"]


def module_id(path):
    return str(path.relative_to(PACKAGE))


def run_python(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, FUNCTIONS):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{node.name} is too long"


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_code_from_model_files(pattern):
    found = [module_id(p) for p in MODULES if re.search(pattern, p.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_no_call_runs_code_or_unpacks_an_archive(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert FORBIDDEN_MODULES.isdisjoint(name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            refuse_call(node)


def refuse_call(node):
    called, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
    last = called.rsplit(".", 1)[-1]
    if called.endswith("np.load") or called == "numpy.load":
        assert options.get("allow_pickle") == "False", f"line {node.lineno}: {called} without allow_pickle=False"
    elif called == "torch.load":
        assert options.get("weights_only") == "True", f"line {node.lineno}: torch.load without weights_only=True"
    elif called not in ("re.compile", "redos.compile") and not (last == "eval" and "." in called):
        assert last not in FORBIDDEN_CALLS, f"line {node.lineno}: {called}"
        assert not any(called.endswith(f".{name}") for name in FORBIDDEN_CALLS if "." in name), called


@pytest.mark.parametrize(
    "code", ["np.load(f)", "torch.load(f)", "eval(s)", "os.system(s)", "torch.hub.load(s)", "archive.extractall()"]
)
def test_such_calls_are_noticed(code):
    with pytest.raises(AssertionError):
        refuse_call(ast.parse(code, mode="eval").body)


def test_import_is_light():
    code = f"import sys, diffretriever; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python(code) == "[]"


@pytest.mark.parametrize("name", diffretriever.__all__)
def test_every_public_name_resolves(name):
    assert getattr(diffretriever, name) is not None
    assert name in dir(diffretriever)


def test_public_names_are_sorted_and_others_fail():
    assert diffretriever.__all__ == sorted(diffretriever.__all__)
    assert set(diffretriever._HOMES) == set(diffretriever.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = diffretriever.nothing


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_one_version_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert diffretriever.__version__ in (version, "0+unknown")  # unknown: run from source, not installed
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_every_direct_dependency_has_an_exact_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonical(line.split("==")[0]) for line in lines if "==" in line}
    assert {canonical(re.split(r"[<>=!~\[; ]", d)[0]) for d in wanted} <= pinned


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_bundled_collection_is_whole():
    folder = PACKAGE / "data" / "scifact"
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        passages = [json.loads(line) for line in file]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    judged = [line.split("\t") for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    ids = {p["_id"] for p in passages}
    assert (len(passages), len(ids), len(queries), len(judged)) == (5183, 5183, 300, 339)
    assert all(p["text"] and p["title"] and set(p) == {"_id", "title", "text"} for p in passages)
    assert {q["_id"] for q in queries} == {row[0] for row in judged}
    assert {row[1] for row in judged} <= ids


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_source_archive_holds_what_the_tests_read():
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    there = {path.name for path in ROOT.iterdir() if path.name in built["sdist"]["include"]}
    assert there >= {"benchmarks", "docs", "recipes", "src", "tests", "CITATION.cff", "constraints.txt", "NOTICE"}
    assert built["wheel"]["sources"]["recipes"] == "diffretriever/data/recipes"


def test_what_ships_leads_nowhere_outside_of_itself():
    for page in PACKAGE.rglob("*.md"):
        assert "](../" not in page.read_text(encoding="utf-8"), page
    licence = (PACKAGE / "data" / "english" / "SNOWBALL-LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("Copyright (c) 2001, Dr Martin Porter\n")
