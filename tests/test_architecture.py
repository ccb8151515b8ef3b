"""The walls of the house: imports go one way, some libraries live in one room, some files stay
pure.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["datatokens", "fl_client", "fl_server", "datahub"]  # each may import those before it
# within a room each alcove may import those before it, but for the pairs that stay APART
ALCOVES = {
    "datatokens": ["chain", "bindings"],
    "fl_client": ["data", "model", "privacy", "worker", "node", "office"],
    "fl_server": [],
    "datahub": [
        "metadata",
        "index",
        "migrations",
        "market",
        "web",
        "operator",
        "buyer",
        "shell",
        "demo",
    ],
}
APART = {
    ("datahub", "buyer", "market"),
    ("datahub", "buyer", "web"),
    ("datahub", "shell", "market"),
    ("datahub", "shell", "web"),
    ("fl_client", "model", "data"),
}
FILES = sorted(
    path
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if "node_modules" not in path.parts
)
ONLY_IN = {
    "web3": {"datatokens"},
    "eth": {"datatokens"},
    "torch": {
        "fl_client",
        "datahub/buyer/sdk.py",
        "datahub/buyer/quoting.py",
        "datahub/buyer/trained.py",
    },
    "opacus": {"fl_client"},
    "fastapi": {"datahub"},
    "sqlmodel": {"datahub"},
    "flwr": {"fl_client", "fl_server"},
}
PURE = [
    "datatokens/payouts.py",
    "datatokens/merkle.py",
    "datatokens/refusals.py",
    "datatokens/layouts.py",
    "datatokens/money.py",
    "datatokens/terms.py",
    "datatokens/wire.py",
    "fl_client/privacy/plan.py",
    "fl_client/node/policy.py",
    "fl_client/node/purposes.py",
    "datahub/index/fold.py",
    "fl_client/office/drawing.py",
    "fl_client/node/attestation.py",
    "fl_client/privacy/evaluation.py",
    "fl_client/privacy/looks.py",
    "fl_client/privacy/defaults.py",
    "fl_server/aggregation.py",
    "fl_server/report.py",
    "datahub/market/domain.py",
]
MODULES = [p.relative_to(ROOT).as_posix().removesuffix(".py").replace("/", ".") for p in FILES]
MODULES = sorted((m for m in MODULES if not m.endswith("__init__")), key=len, reverse=True)
PURE_LIBRARIES = {"eth_hash", "eth_abi", "eth_account", "eth_utils", "numpy"}
IMPURE_STANDARD = {
    "os",
    "socket",
    "subprocess",
    "sqlite3",
    "threading",
    "pathlib",
    "urllib",
    "time",
    "random",
}
ENVIRONMENT_READERS = {
    "fl_server/app.py",
    "fl_server/superlink.py",
    "datahub/demo/stack.py",
    "datahub/demo/walk.py",  # sets where the demo's buyer keeps its network and jobs
    "datahub/buyer/networks.py",
    "fl_client/worker/workers.py",  # hands on four names to its workers, and no others
    "fl_client/worker/zygote.py",  # sets where a worker may write
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports at run time (TYPE_CHECKING blocks included: they are walls
    too).
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    allowed = ROOMS[: ROOMS.index(room_of(path)) + 1]
    upward = {
        name
        for name in imports(path)
        if name.split(".")[0] in ROOMS and name.split(".")[0] not in allowed
    }
    assert not upward, f"{name_of(path)} imports from a room above: {upward}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    for library, homes in ONLY_IN.items():
        if any(name.split(".")[0] == library for name in imports(path)):
            assert room_of(path) in homes or name_of(path) in homes, (
                f"{name_of(path)} must not import {library}"
            )


def test_flowers_private_modules__are_touched_by_these_files_alone() -> None:
    """Flower promises nothing about them; test_bundle.py pins its version."""
    public = {"app", "clientapp", "serverapp"}
    touching = {
        name_of(path)
        for path in FILES
        for name in imports(path)
        if name.startswith("flwr.") and name.split(".")[1] not in public
    }
    assert touching == {
        "fl_client/node/bundle.py",
        "fl_client/node/supernode.py",
        "fl_server/gate.py",
        "fl_server/runner.py",
        "fl_server/runs.py",
        "fl_server/superlink.py",
        "fl_server/turns.py",
    }


@pytest.mark.parametrize("name", PURE)
def test_pure_files_import_nothing_that_acts(name: str) -> None:
    for imported in imports(ROOT / name):
        top = imported.split(".")[0]
        if top in ROOMS:
            module = next(m for m in MODULES if imported == m or imported.startswith(m + "."))
            module = module.replace(".", "/") + ".py"
            assert module in PURE or module.endswith(("errors.py", "protocol.py")), (
                f"{name} imports {imported}"
            )
        else:
            assert top in PURE_LIBRARIES or (
                top in sys.stdlib_module_names and top not in IMPURE_STANDARD
            ), imported


# files that this machine's user or program has written, the packaged ones, and the parsers
OWN_JSON = {
    "datahub/index/indexer.py",  # what it has written itself
    "datatokens/build.py",
    "datatokens/chain/artifacts.py",
    "datatokens/chain/devchain.py",
    "datatokens/deploy.py",
    "datatokens/wire.py",
    "fl_client/data/album.py",
    "fl_client/data/survey.py",
    "fl_client/model/graph.py",
    "fl_client/node/audit_log.py",
    "fl_client/node/entries.py",
    "fl_client/node/job_folder.py",
    "fl_client/privacy/counter.py",
    "fl_server/run_folder.py",
    "fl_server/superlink.py",
}


def test_what_another_party_wrote__is_parsed_in_one_place() -> None:
    """json.loads takes any depth and number; datatokens/wire.py bounds both."""
    used = {
        name_of(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.loads", "json.load")
    }
    assert used == OWN_JSON


def test_no_import_cycles() -> None:
    graph = {}
    for path in FILES:
        module = name_of(path).removesuffix(".py").replace("/", ".")
        # imports inside functions are deferred on purpose and cannot form a cycle at import time
        top_level = ast.parse(path.read_text())
        names = set()
        for node in top_level.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        graph[module] = {n for n in names if n.split(".")[0] in ROOMS}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import cycle: {' -> '.join((*trail, module))}"
        if module in done or module not in graph:
            return
        for target in graph[module]:
            visit(target, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_environment_is_read_at_the_door_only(path: Path) -> None:
    text = path.read_text()
    if "os.environ" in text or "getenv" in text:
        assert name_of(path) in ENVIRONMENT_READERS


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"


def alcove_of(name: str) -> tuple[str, str] | None:
    """(room, alcove) of a dotted module name; None for a file that stands in its room itself."""
    parts = name.split(".")
    return (
        (parts[0], parts[1]) if len(parts) > 2 and parts[1] in ALCOVES.get(parts[0], ()) else None
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_alcoves_are_one_level_and_import_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    assert len(parts) <= 3, f"{name_of(path)} is in an alcove of an alcove"
    if len(parts) < 3:
        return
    room, alcove = parts[0], parts[1]
    assert alcove in ALCOVES[room], f"{name_of(path)} is in an alcove that the plan does not have"
    allowed = ALCOVES[room][: ALCOVES[room].index(alcove) + 1]
    for imported in imports(path):
        home = alcove_of(f"{imported}." if imported.count(".") == 1 else imported)
        if home and home[0] == room and home[1] != alcove:
            assert home[1] in allowed, f"{name_of(path)} imports from an alcove above: {imported}"
            assert (room, alcove, home[1]) not in APART, f"{name_of(path)} imports {imported}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_at_most_twenty_files_outside_its_alcoves(room: str) -> None:
    assert len(list((ROOT / room).glob("*.py"))) <= 20


def test_no_rooms_without_a_noun() -> None:
    forbidden = {"utils.py", "helpers.py", "common.py", "core.py", "manager.py", "base.py"}
    assert not [name_of(path) for path in FILES if path.name in forbidden]


def test_nothing_unpickles_or_evaluates() -> None:
    """No code of the product can turn a buyer's bytes into code."""
    forbidden = {
        "torch.load",
        "torch.export.load",
        "torch.jit.load",
        "eval",
        "exec",
        "np.load",
        "numpy.load",
        "yaml.load",
    }
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in forbidden, (
                    f"{name_of(path)}: {ast.unparse(node)}"
                )
        assert not {"pickle", "dill", "cloudpickle", "marshal"} & imports(path), name_of(path)


def test_no_test_moves_the_clock_of_the_whole_process() -> None:
    """Threads of other tests would run on it, and move it: tests/clocks.py gives one module its
    own.
    """
    pattern = re.compile(r'setattr\(\s*(\w+\.)?time\s*,\s*["\']')
    found = [
        f"{path.relative_to(ROOT)}: {found.group()}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for found in pattern.finditer(path.read_text())
    ]
    assert not found, found
