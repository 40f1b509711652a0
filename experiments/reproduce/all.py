"""All papers in order, and the pages that put them side by side with ours.

    ./run reproduce                                    # the smoke scale of all, minutes
    ./run reproduce fuchs_2021 qr_sac_mujoco --scale=small --keep
    ./run reproduce --pages                            # docs/reproductions.md and .html alone

Every paper is a folder beside this file; `paper.py` says what it holds. What was done is not done
again, so that a command that was stopped goes on. `--keep` writes results into the papers' folders,
from which the pages are made.
"""

import dataclasses
import html
import importlib
import re
import sys
from pathlib import Path

from core_rl import flags
from core_rl.errors import UsageError, UserError
from core_rl.report import style
from core_rl.tracking import write_atomically
from experiments.executors import interrupted
from experiments.reproduce.paper import HERE, Paper, ReproduceConfig, markdown, readme, reproduce

PAPERS = (
    "gt_sophy_2022",
    "fuchs_2021",
    "qr_sac_mujoco",
    "residual_mppi_2025",
    "reward_design_2025",
    "ace_2026",
)
DOCS = HERE.parents[1] / "docs"


@dataclasses.dataclass(frozen=True)
class AllConfig(ReproduceConfig):
    papers: tuple[str, ...] = ()  # by the name of their folders; empty: all
    pages: bool = False  # only make the pages anew

    def __post_init__(self):
        super().__post_init__()
        for name in self.papers:
            if name not in PAPERS:
                raise ValueError(f"there is no paper {name!r}; there are {', '.join(PAPERS)}")


def paper_of(name: str) -> Paper:
    return importlib.import_module(f"experiments.reproduce.{name}.run").PAPER


def page() -> str:
    """docs/reproductions.md."""
    head = """# Reproductions

What papers report beside what this repository measured, each with the command that measures it
again. Every paper is a folder in `experiments/reproduce/` with its steps, the results of what was
really run (`results.jsonl`, a row per step with command, commit, machine and date) and what is
different here. An empty cell has not been run by us or is not published.

"""
    return head + "\n".join(markdown(paper_of(name)) for name in PAPERS)


def html_of(text: str) -> str:
    """A page of this text, which holds no more Markdown than `page` writes."""
    parts: list[str] = []
    kind = ""  # of the block that is open
    # Lines of a paragraph, the others are whole.
    text = re.sub(r"(?m)^(?![|#-])(.+)\n(?=[^|#\n-])", r"\1 ", text)
    for line in text.splitlines():
        now = "table" if line.startswith("|") else "ul" if line.startswith("- ") else ""
        if kind and now != kind:
            parts.append(f"</{kind}>")
        if now and now != kind:
            parts.append(f"<{now}>")
        kind = now
        shown = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(line, quote=False))
        if now == "table":
            cells = [cell.strip() for cell in shown.strip("|").split("|")]
            if not all(set(cell) <= {"-"} for cell in cells) or not any(cells):
                parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        elif now == "ul":
            parts.append(f"<li>{shown.removeprefix('- ')}</li>")
        elif shown.startswith("#"):
            level = len(shown) - len(shown.lstrip("#"))
            parts.append(f"<h{level}>{shown.lstrip('# ')}</h{level}>")
        elif shown:
            parts.append(f"<p>{shown}</p>")
    if kind:
        parts.append(f"</{kind}>")
    body = "\n".join(parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Reproductions</title>'
        f"<style>{style()} td {{ padding: 0.2em 1em 0.2em 0; vertical-align: top; }}</style></head>"
        f'<body><main style="max-width: 60rem; margin: 2rem auto; padding: 0 1rem">{body}</main>'
        "</body></html>"
    )


def write_pages(folder: Path = DOCS) -> None:
    """The two pages, and the papers' READMEs."""
    for name in PAPERS:
        paper = paper_of(name)
        write_atomically(paper.folder / "README.md", readme(paper).encode())
    text = page()
    write_atomically(folder / "reproductions.md", text.encode())
    write_atomically(folder / "reproductions.html", html_of(text).encode())


def main(config: AllConfig) -> int:
    failed = []
    for name in () if config.pages else config.papers or PAPERS:
        paper = paper_of(name)
        if not paper.steps[config.scale]:
            sys.stderr.write(f"{name}: nothing to run at scale {config.scale}. {paper.full}\n")
            continue
        out = str(Path(config.out) / name) if config.out else ""
        own = ReproduceConfig(config.scale, config.only, out, config.keep)
        try:
            code = reproduce(paper, own)
        except UsageError:
            raise
        except UserError as error:
            if not config.only:  # the other papers have the steps that were named
                raise
            sys.stderr.write(f"{error}\n")
            code = 0
        if interrupted(code):
            return code
        if code:
            failed.append(name)
    if config.keep or config.pages:
        write_pages()
        sys.stderr.write(f"{DOCS / 'reproductions.md'}, {DOCS / 'reproductions.html'}\n")
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    flags.main(main, AllConfig(), positional="papers")
