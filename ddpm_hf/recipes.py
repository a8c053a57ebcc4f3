"""What is shipped beside the code and found by name: recipes, launcher files, single-file pipelines, the loop itself.

In a checkout they stand at the top, to be seen; a wheel holds them within the package, and the script beside it.
"""

import difflib
import sys
from collections import Counter
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import yaml

PACKAGE: Final = Path(__file__).parent
RECIPES, LAUNCHERS, PIPELINES = "configs/train", "configs/accelerate", "pipelines"

SUFFIXES: Final = {RECIPES: ".yaml", LAUNCHERS: ".yaml", PIPELINES: ".py"}
KINDS: Final = {RECIPES: "recipe", LAUNCHERS: "launcher file", PIPELINES: "pipeline"}


def folder_of(kind: str) -> Path:
    """The folder of `RECIPES`, `LAUNCHERS` or `PIPELINES`."""
    installed = PACKAGE / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def names_of(kind: str) -> list[str]:
    """The names of all the files of a kind, in alphabetical order."""
    return sorted(path.stem for path in folder_of(kind).glob(f"[!_]*{SUFFIXES[kind]}"))


def find_file(kind: str, name: str) -> Path:
    """The file that a person means: one of their own by its path, or one of this package by its name.

    Args:
        kind: `RECIPES`, `LAUNCHERS` or `PIPELINES`.
        name: such as "cifar10" or "my/recipe.yaml". A file of that path wins.

    Raises:
        ValueError: a plain name that is neither. A path is returned unseen, so that whoever opens it can say why not.
    """
    path = Path(name)
    shipped = folder_of(kind) / f"{name}{SUFFIXES[kind]}"
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    if name in names_of(kind):
        return shipped
    nearest = difflib.get_close_matches(name, names_of(kind), n=1)
    hint = f"; the nearest one is {nearest[0]!r}" if nearest else ""
    raise ValueError(
        f"there is no {KINDS[kind]} {name!r}; give the path of a file, or one of {', '.join(names_of(kind))}{hint}"
    )


def default_recipes() -> tuple[Path, dict[str, Path]]:
    """The recipe that counts when none is asked for, and those in its place: setting that is given -> recipe."""
    folder, others = folder_of(RECIPES), {"init_from": "fine_tune", "data.name": "photos"}
    return folder / "digits.yaml", {setting: folder / f"{name}.yaml" for setting, name in others.items()}


def pipeline_class(name: str) -> Any:
    """The class of a single-file pipeline of this package, which is imported like any other code of it."""
    module = import_module(f"ddpm_hf.pipelines.{name}")
    [own] = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
    return own


def training_script() -> ModuleType:
    """train_accelerate.py, the script that stands beside this package, as a module."""
    name, path = "train_accelerate", PACKAGE.parent / "train_accelerate.py"
    loaded = sys.modules.get(name)
    if loaded is not None and Path(loaded.__file__ or "").resolve() == path.resolve():
        return loaded
    # By its path: a file of that name in the current folder is another one.
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_recipe(path: Path) -> Any:
    """What the YAML of a recipe holds.

    Raises:
        ValueError: it cannot be read, or is no YAML, or has a form that no recipe needs.
    """
    try:
        return _yaml(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ValueError(
            f"the recipe {path} cannot be read ({error.strerror}); give the path of a YAML file to --config, or one of "
            f"{', '.join(names_of(RECIPES))}"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the recipe {path} is not text in UTF-8 (its byte {error.start} is not); save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it holds lists in lists without end"
        raise ValueError(f"the recipe {path} cannot be used: {reason}") from None


def _yaml(text: str) -> Any:
    """What YAML holds, with what it allows and no recipe means refused: keys that are set twice, and endless aliases.

    Raises:
        ValueError: there is such a thing.
        yaml.YAMLError: it is not YAML.
    """
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node) -> int:
        """How many values a node holds once its aliases are written out."""
        if id(node) in sizes:
            return sizes[id(node)]
        sizes[id(node)] = MOST_VALUES  # of a node within itself
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            twice = next((key for key, count in Counter(keys).items() if count > 1), None)
            if twice is not None:
                raise ValueError(f"it sets {twice!r} twice in one place; keep one of the two")
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        sizes[id(node)] = 1 + sum(map(size_of, inner))
        if sizes[id(node)] > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values")
        return sizes[id(node)]

    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is not None:
        size_of(node)
    return yaml.safe_load(text)


MOST_VALUES = 2_000_000
"""Of one recipe: trained_betas may be long."""
