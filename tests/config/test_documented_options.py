"""README's table of options says what the server's own table says."""

from __future__ import annotations

from pathlib import Path

from server.config.options import OPTIONS, Option

README = Path(__file__).parents[2] / "README.md"
DEFAULTS = {"model-dir": "the demo model"}


def row(option: Option) -> str:
    form = option.form.replace("|", "\\|")
    flag = "MODEL_DIR" if option.name == "model-dir" else f"--{option.name} {form}"
    default = DEFAULTS.get(option.name, option.default or "")
    return f"| `{flag}` | {default} | {option.help} |"


def test_the_readme_lists_every_option_as_help_does() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    start = lines.index("| option | default | what it is |")
    written = lines[start + 2 : lines.index("", start)]
    assert written == [row(option) for option in OPTIONS]
