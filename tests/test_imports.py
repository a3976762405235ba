"""Who may import whom, read from the source: CONTRIBUTING.md and the docstring of the package have the rules."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "a3d_det2"
# Room or module at the top -> what it may import of the package, beside itself. Engine may import all.
ALLOWED = {
    "files": set(),
    "csv_table": set(),
    "segmentation": {"files"},
    "optional": set(),
    "threads": set(),
    "kernels": set(),
    "layers": {"kernels"},
    "modeling": {"kernels", "layers"},
    "checkpoint": {"files", "layers", "modeling"},
    "config": set(),
    "data": {"config", "files", "segmentation"},
    "evaluation": {"csv_table", "files", "segmentation"},
    "volumes": {"data", "files"},
    "registration": {"data", "modeling"},
    "model_zoo": {"checkpoint", "config", "optional"},
    "__init__": {"optional"},
}
NEED_DETECTRON2 = {
    "a3d_det2.checkpoint.detectron2",
    "a3d_det2.data.augmentation",
    "a3d_det2.data.dataset_mapper",
    "a3d_det2.data.loaders",
    "a3d_det2.data.registration",
    "a3d_det2.engine.detectron2_rules",
    "a3d_det2.engine.hooks",
    "a3d_det2.engine.launching",
    "a3d_det2.engine.steps",
    "a3d_det2.engine.trainer",
    "a3d_det2.engine.tta",
    "a3d_det2.evaluation.deeplesion_evaluation",
    "a3d_det2.modeling.backbone",
    "a3d_det2.modeling.mask_head",
    "a3d_det2.modeling.lesion_rpn",
    "a3d_det2.modeling.meta_arch",
    "a3d_det2.registration",
}
FOLDER_THAT_NEEDS_DETECTRON2 = "a3d_det2.modeling.published"


def is_for_detectron2(name: str) -> bool:
    return name in NEED_DETECTRON2 or name.startswith(FOLDER_THAT_NEEDS_DETECTRON2)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_alias(path: Path) -> bool:
    """Whether a module is one line, the import of what had this path before."""
    body = ast.parse(path.read_text()).body
    return len(body) == 1 and isinstance(body[0], ast.ImportFrom)


PATHS = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
ALIASES = {name for name, path in PATHS.items() if is_alias(path)}
MODULES = {name: path for name, path in PATHS.items() if name not in ALIASES}


def imports(name: str, everywhere: bool = True) -> set[str]:
    """Modules that a module imports: all, or those that it imports when it is imported itself."""
    path, found = MODULES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            within = {f"{source}.{alias.name}" for alias in node.names} & PATHS.keys()
            found.update(within or {source})
        if everywhere or not isinstance(node, ast.FunctionDef):
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(ast.parse(path.read_text()))
    return found


def room(name: str) -> str:
    return (name.split(".") + ["__init__"])[1]


def test_the_reader_sees_what_there_is():
    assert len(MODULES) > 70
    assert "a3d_det2.kernels.mixing" in imports("a3d_det2.layers.a3d")
    assert {"torch", "a3d_det2.layers.fusion_conv"} <= imports("a3d_det2.layers.a3d")
    assert "pycocotools" in imports("a3d_det2.segmentation") - imports("a3d_det2.segmentation", everywhere=False)
    assert "a3d_det2.kernels.cpu" in imports("a3d_det2.kernels.mixing")


def test_there_is_no_circle():
    graph = {name: imports(name, everywhere=False) & MODULES.keys() - {name} for name in MODULES}
    for name, found in graph.items():  # a module of a package has the package imported as well
        found |= {
            parent for other in list(found) if (parent := other.rpartition(".")[0]) and not name.startswith(parent)
        }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", MODULES)
def test_no_room_imports_what_it_may_not(name):
    found = {room(other) for other in imports(name) & MODULES.keys()} - {room(name)}
    if room(name) != "engine":
        assert found <= ALLOWED[room(name)]


def test_detectron2_is_imported_by_the_modules_that_are_there_for_it():
    def needs(name: str) -> bool:
        found = imports(name, everywhere=False)
        return any(other.split(".")[0] == "detectron2" or is_for_detectron2(other) for other in found)

    assert {name for name in MODULES if needs(name)} == {name for name in MODULES if is_for_detectron2(name)}
    assert MODULES.keys() > NEED_DETECTRON2


def test_nobody_imports_an_old_path():
    assert "a3d_det2.strict_checkpoint" in ALIASES
    assert all(PATHS[name].read_text().count("\n") == 1 for name in ALIASES)
    users = {name: used for name, path in MODULES.items() if (used := ALIASES & imports(name))}
    assert users == {}


def test_they_are_named_in_contributing(repo):
    text = (repo / "CONTRIBUTING.md").read_text()
    missing = [name for name in NEED_DETECTRON2 if name.removeprefix("a3d_det2.").replace(".", "/") + ".py" not in text]
    assert missing == []
    assert "modeling/published/" in text
