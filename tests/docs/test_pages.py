"""What the pages for people name is there: functions of the paper's map, commands, options, samplers, pages."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import edm_ray
from edm_ray.cli import COMMANDS
from edm_ray.cli.completion import named_options
from edm_ray.config.load import configure
from edm_ray.config.presets import PRESETS
from edm_ray.diffusion.samplers import SOLVERS, Sampler, sampler

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAPER, COMING = DOCS / "paper.md", DOCS / "coming-from.md"
PLAIN = [PAPER, COMING, DOCS / "index.md", DOCS / "tutorial.md"]


def _there(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        module = ".".join(parts[:cut])
        if importlib.util.find_spec(module) is None if cut == 1 else not _is_module(module):
            continue
        value = importlib.import_module(module)
        for part in parts[cut:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_every_name_that_the_map_of_the_paper_gives_exists():
    names = re.findall(r"`(edm_ray(?:\.\w+)+)`", PAPER.read_text())
    assert len(names) > 40
    assert not [name for name in names if not _there(name)]
    assert not _there("edm_ray.diffusion.samplers.heun.slopes")


def test_every_equation_algorithm_and_table_of_the_paper_has_its_row():
    text = PAPER.read_text()
    rows = [f"equation {i}" for i in range(1, 9)] + ["Algorithm 1", "Algorithm 2"]
    rows += [
        "Table 1, sampling",
        "Table 1, preconditioning",
        "Table 1, training",
        "Table 2",
        "Table 3",
        "Table 4",
        "Table 5",
    ]
    rows += ["Table 7", "figure 1", "figure 2", "figure 3", "figure 4", "figure 5a", "figure 5b"]
    assert not [row for row in rows if f"\n| {row} |" not in text]


def _commands(page: Path) -> list[list[str]]:
    """Every `edm-ray ...` of a page as words, up to what a shell would take for its own."""
    found = re.findall(r"edm-ray ([a-z][^`\n|>#()]*)", page.read_text().replace("\\\n", " "))
    return [
        shlex.split(text.replace("...", "").split(";")[0]) for text in found if text.split()[0].strip(",.:") in COMMANDS
    ]


@pytest.mark.parametrize("page", PLAIN, ids=lambda path: path.name)
def test_commands_and_options_of_a_page_exist(page):
    for words in _commands(page):
        options = [word for word in words[1:] if word.startswith("--") and word != "--"]
        wrong = [option for option in options if option not in named_options(words[0])]
        assert not wrong, (page.name, words)


@pytest.mark.parametrize("page", [PAPER, COMING], ids=lambda path: path.name)
def test_settings_of_a_page_are_settings(page):
    """KEY=VALUE after --set: of a sampler with generate and evaluate, of a training with train."""
    checked = 0
    for words in _commands(page):
        if "--set" not in words:
            continue
        pairs = [word for word in words[words.index("--set") + 1 :] if "=" in word]
        checked += len(pairs)
        if words[0] == "train":
            configure(PRESETS["ddpmpp-32"].make(PRESETS["ddpmpp-32"].example), None, pairs)
        else:
            flat = dict(pair.split("=") for pair in pairs)
            sampler(**{key: int(value) if value.isdecimal() else _number(value) for key, value in flat.items()})
    assert checked > 5
    settings = re.findall(r"\| `--set ((?:[\w.]+=[\w.e-]+ ?)+)`", COMING.read_text())
    for pairs in settings:
        if all("." in pair or "kimg" in pair or "size" in pair or "batch" in pair for pair in pairs.split()):
            configure(PRESETS["ddpmpp-32"].make(PRESETS["ddpmpp-32"].example), None, pairs.split())


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def test_samplers_that_are_compared_with_other_codes_exist_with_these_settings():
    for name, arguments in re.findall(r"`edm\.(\w+)\(([^`]*)\)`", COMING.read_text()):
        value = getattr(edm_ray, name)
        if isinstance(value, type) and issubclass(value, Sampler):
            known = value.__dataclass_fields__
            assert not [key for key in re.findall(r"(\w+)=", arguments) if key not in known], (name, arguments)
    assert {"Euler", "Heun", "DPMpp2M"} <= {cls.__name__ for cls in SOLVERS.values()}


def test_the_site_has_a_page_for_every_entry_and_every_guide_is_in_it():
    config = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]

    def entries(part) -> list[str]:
        return (
            [part]
            if isinstance(part, str)
            else [e for each in (part.values() if isinstance(part, dict) else part) for e in entries(each)]
        )

    listed = entries(config["nav"])
    assert not [name for name in listed if not (ROOT / name).is_file()]
    pages = {str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md")}
    assert pages == {name for name in listed if name.startswith("docs/")}


def test_what_was_never_run_is_said_in_the_first_screen():
    for page in (ROOT / "README.md", DOCS / "index.md"):
        first = " ".join(page.read_text().splitlines()[:24])
        assert "H100" in first and "cloud" in first and "status.md" in first, page


def test_the_site_is_gathered_with_all_that_its_pages_link_to(tmp_path):
    spec = importlib.util.spec_from_file_location("build_site", DOCS / "build_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a clone")
    module.gather(tmp_path / "site")
    for page in (tmp_path / "site").rglob("*.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path = link.partition("#")[0]
            if "://" not in link and not link.startswith("mailto:") and path:
                assert (page.parent / path).exists(), f"{page}: {link}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning():
    pytest.importorskip("zensical")
    subprocess.run([sys.executable, "docs/build_site.py"], cwd=ROOT, check=True)
    subprocess.run([Path(sys.executable).with_name("zensical"), "build", "--strict", "--clean"], cwd=ROOT, check=True)
