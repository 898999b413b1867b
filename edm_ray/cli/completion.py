"""Print a script that completes commands, options and file names in your shell: bash, zsh or fish.

It describes the installed commands, so print it again after an update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from edm_ray import cli
from edm_ray.cli.console import write_out
from edm_ray.cli.option_list import options_of


@dataclass(frozen=True)
class Args:
    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
    """bash, zsh or fish."""


def run(args: Args) -> None:
    make = {"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell]
    write_out(make({name: named_options(name) for name in cli.COMMANDS}).rstrip("\n"))


def named_options(command: str) -> list[str]:
    return sorted(["--help", *(option.name for option in options_of(command) if not option.positional)])


def _bash(options: dict[str, list[str]]) -> str:
    cases = "\n".join(f'    {name}) words="{" ".join(names)}" ;;' for name, names in options.items())
    return f"""# edm-ray: completion for bash
_edm_ray() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(options)}" -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  if [[ "$current" == -* ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}}
complete -o filenames -F _edm_ray edm-ray
"""


def _zsh(options: dict[str, list[str]]) -> str:
    commands = "\n".join(f"    '{name}:{_quoted(text)}'" for name, text in cli.COMMANDS.items())
    cases = "\n".join(f"    {name}) compadd -- {' '.join(names)} ;;" for name, names in options.items())
    return f"""#compdef edm-ray
_edm_ray() {{
  local -a commands
  commands=(
{commands}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  if [[ "${{words[CURRENT]}}" != -* ]]; then
    _files
    return
  fi
  case "${{words[2]}}" in
{cases}
  esac
}}
_edm_ray "$@"
"""


def _fish(options: dict[str, list[str]]) -> str:
    lines = ["# edm-ray: completion for fish"]
    for name, text in cli.COMMANDS.items():
        lines.append(f"complete -c edm-ray -n __fish_use_subcommand -f -a {name} -d '{_quoted(text)}'")
    for name, names in options.items():
        lines += [f"complete -c edm-ray -n '__fish_seen_subcommand_from {name}' -l {option[2:]}" for option in names]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Within single quotes, and without the colon that zsh parts at."""
    return text.replace("'", "").replace(":", " -")
