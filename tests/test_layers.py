"""Who imports whom: a file imports only from files above it, and torch waits until a model is needed."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vid3d_cli

PACKAGE = Path(vid3d_cli.__file__).parent

LAYERS = [
    *(
        "version",
        "text",
        "errors",
        "offline",
        "suggest",
        "toml_files",
        "arguments",
        "recipe",
        "records",
        "segments",
        "timings",
        "workers",
        "durable",
        "device_memory",
    ),
    "fusion",
    *("video", "flow", "models", "clips", "predictions", "results", "runtimes", "options", "presets", "plan", "run"),
    *("checks", "features", "jobs", "diagnosis", "api", "__init__", "cli", "__main__"),
]
"""Top to bottom; a folder is one layer, whose files import each other without a cycle."""

WITH_TORCH = {
    *("checks.py", "device_memory.py", "flow/tvl1.py", "flow/tvl1_kernels.py", "flow/tvl1_solver.py"),
    *("models/clip_model.py", "models/checkpoint.py", "models/inflation.py"),
    *("models/backbones/", "runtimes/"),
    "clips/resampling.py",  # for long videos of large frames
}
TORCH_PACKAGES = ("torch", "torchvision", "safetensors.torch")
HEAVY = ["torch", "torchvision", "cv2", "av", "numpy", "PIL", "huggingface_hub", "safetensors"]

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def layer_of(file):
    """ "cli/console.py" → "cli", "clips.py" → "clips"."""
    return Path(file).parts[0].removesuffix(".py")


def is_for_types_only(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def import_nodes(node):
    """Import statements at any depth, in functions too, but not those for type checkers."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node
    children = node.orelse if is_for_types_only(node) else ast.iter_child_nodes(node)
    for child in children:
        yield from import_nodes(child)


def imported_names(file, source):
    """Full names of what a file imports: `from a import b` is "a.b", whatever b is."""
    package = ["vid3d_cli", *Path(file).parent.parts]
    for node in import_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_layers(file, source):
    layers = set()
    for name in imported_names(file, source):
        root, *rest = name.split(".")
        if root == "vid3d_cli":
            # what is no file of the package is a name in its __init__
            layers.add(rest[0] if rest and rest[0] in map(layer_of, FILES) else "__init__")
    return layers


def has_torch(file):
    return any(file == place or (place.endswith("/") and file.startswith(place)) for place in WITH_TORCH)


def is_torch(name):
    return any(name == package or name.startswith(f"{package}.") for package in TORCH_PACKAGES)


def test_every_file_has_a_layer():
    assert {layer_of(file) for file in FILES} <= set(LAYERS)


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_from_above(file):
    own = LAYERS.index(layer_of(file))
    reached = imported_layers(file, (PACKAGE / file).read_text("utf-8"))
    is_package = "/" in file  # whose files may import each other
    below = [layer for layer in reached if LAYERS.index(layer) > own or (LAYERS.index(layer) == own and not is_package)]
    assert below == []


def test_no_files_import_each_other_in_a_circle():
    """At the top of a file, where a circle would make the order of imports matter."""
    modules = {Path(file).with_suffix("").as_posix().replace("/", "."): file for file in FILES}
    modules = {name.removesuffix(".__init__"): file for name, file in modules.items()}
    graph = {}
    for name, file in modules.items():
        tree = ast.parse((PACKAGE / file).read_text("utf-8"))
        nodes = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        imported = imported_names(file, "\n".join(map(ast.unparse, nodes)))
        inside = [full.removeprefix("vid3d_cli.") for full in imported if full.startswith("vid3d_cli.")]
        graph[name] = {n if n in modules else n.rpartition(".")[0] for n in inside} & modules.keys() - {name}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names them


@pytest.mark.parametrize("file", [file for file in FILES if not has_torch(file)])
def test_only_networks_import_torch(file):
    assert [name for name in imported_names(file, (PACKAGE / file).read_text("utf-8")) if is_torch(name)] == []


@pytest.mark.parametrize("file", [file for file in FILES if has_torch(file)])
def test_torch_is_imported_before_its_parts(file):
    """Else two threads that import it at the same time, a reader and the engine, may wait for each other for ever."""
    nodes = import_nodes(ast.parse((PACKAGE / file).read_text("utf-8")))
    modules = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes]
    assert [name for name in modules if name.split(".")[0] == "torch"][:1] in ([], ["torch"])


@pytest.mark.parametrize(
    ("file", "source", "layers", "torch"),
    [
        ("clips.py", "from .errors import UsageError", {"errors"}, False),
        ("clips.py", "from . import plan", {"plan"}, False),
        ("clips.py", "def f():\n    from .plan import Plan", {"plan"}, False),
        ("clips.py", "import vid3d_cli.api", {"api"}, False),
        ("features/npy.py", "from ..records import Clip\nfrom .store import Store", {"records", "features"}, False),
        ("cli/console.py", "from .. import __version__", {"__init__"}, False),
        ("clips.py", "import vid3d_cli", {"__init__"}, False),
        (
            "clips.py",
            "if TYPE_CHECKING:\n    import torch\n    from .api import extract\nelse:\n    import av",
            set(),
            False,
        ),
        ("clips.py", "def f():\n    import torch.nn as nn", set(), True),
        ("clips.py", "from safetensors import torch", set(), True),
        ("clips.py", "from torchvision.io import VideoReader", set(), True),
        ("clips.py", "from safetensors import safe_open\nfrom .runtimes import torchlike", {"runtimes"}, False),
    ],
)
def test_the_check_sees_every_kind_of_import(file, source, layers, torch):
    assert imported_layers(file, source) == layers
    assert any(is_torch(name) for name in imported_names(file, source)) == torch


def heavy_modules_after(code):
    """Which heavy packages a fresh Python has imported after some code."""
    report = f"import sys; print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    script = f"{code}\n{report}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stderr.splitlines()[-1]), done.stdout


def test_help_imports_nothing_heavy():
    heavy, printed = heavy_modules_after(
        "import sys\n"
        "from vid3d_cli.cli import main\n"
        "sys.argv = ['vid3d', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
    )
    assert "classify" in printed
    assert heavy == []


@pytest.mark.parametrize("command", ["classify", "extract"])
def test_help_of_a_command_does_not_import_torch(command):
    heavy, printed = heavy_modules_after(
        "import sys\n"
        "from vid3d_cli.cli import main\n"
        f"sys.argv = ['vid3d', {command!r}, '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
    )
    assert "--window" in printed
    assert not {"torch", "torchvision", "av", "cv2"} & set(heavy)


def test_importing_the_package_imports_nothing_heavy():
    heavy, _ = heavy_modules_after("import vid3d_cli")
    assert heavy == []


def test_the_facts_of_networks_do_not_import_torch():
    heavy, _ = heavy_modules_after("import vid3d_cli.models.registry, vid3d_cli.models.manifest")
    assert not {"torch", "torchvision", "av", "cv2"} & set(heavy)


def test_flow_methods_import_no_torch_before_one_needs_it():
    code = (
        "from vid3d_cli.flow.methods import FLOW_METHODS, create_flow\n"
        "[create_flow(name) for name in FLOW_METHODS if name != 'tvl1']"
    )
    heavy, _ = heavy_modules_after(code)
    assert not {"torch", "torchvision"} & set(heavy)
    heavy, _ = heavy_modules_after(f"{code}; create_flow('tvl1')")
    assert "torch" in heavy


def test_the_check_sees_a_heavy_import():
    heavy, _ = heavy_modules_after("import vid3d_cli; vid3d_cli.top_k")
    assert heavy == ["numpy"]


@pytest.mark.parametrize("name", vid3d_cli.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(vid3d_cli, name).__doc__
    assert re.search(rf"\b{name}\b", vid3d_cli.__doc__), "help(vid3d_cli) shows the whole API"
    assert name in dir(vid3d_cli)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'vid3d_cli' has no attribute 'clasify'"):
        vid3d_cli.clasify  # noqa: B018


def test_windows_is_refused_with_one_clear_error():
    code = "import sys; sys.platform = 'win32'; import vid3d_cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith(
        "ImportError: vid3d needs a POSIX system, such as Linux or macOS: on Windows, install it in WSL\n"
    )
