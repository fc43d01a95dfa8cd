"""Write the table of sampling settings into docs/methods.md, from `var_toolkit.setting_table`."""

import re
from itertools import starmap
from pathlib import Path

from var_toolkit.setting_table import COUNT, SETTINGS, Setting

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
BEGIN, END = "<!-- settings: written by scripts/settings_table.py -->\n", "<!-- end of settings -->"


def row(name: str, setting: Setting) -> str:
    """The line of a setting."""
    option = "options of `--method`" if name == "method_options" else f"`{setting.option}`"
    span = str(setting.range or "").removeprefix("a ").removesuffix(f" to {COUNT}")
    return f"| {option} | {setting.help} | {span} | {', '.join(setting.of)} |"


def written(page: str) -> str:
    """The page with its table as it must be."""
    table = "\n".join(["| Option | Meaning | Range | Only for |", "|---|---|---|---|", *starmap(row, SETTINGS.items())])
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table}\n\n{END}", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
