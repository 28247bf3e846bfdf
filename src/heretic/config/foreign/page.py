"""The page about files of the other tool, docs/migrate.md: its table is that of the rules."""

from __future__ import annotations

from collections.abc import Iterable

from heretic.config.foreign.data_sets import SAME_KEYS, SPACED
from heretic.config.foreign.rules import JUDGE, RECORDED, SETTINGS, Handling, Rule

_HEAD = """\
# Moving over from heretic-llm

<!-- Written by `python -m heretic.config.reference --write`; edit src/heretic/config/foreign/. -->

`heretic-llm` is another project of a like name. Its settings files (`config.toml` of its releases
1.x and 2.x, `judge.toml`) and its reproduction files (`reproduce.json`) are read here too:

<!-- parsed: needs a file -->
```sh
heretic migrate config.toml                    # prints TOML of this tool
heretic migrate config.toml -o mine.toml       # writes it; --overwrite replaces a file
heretic MODEL --config config.toml             # reads the file as it is
```

What means the same is taken. What has another name or another form is converted, and said. What
has no counterpart is left out, and said with the reason. What would let code of others run or
send data away is never carried over; the report says how to allow it yourself. The exit status of
`heretic migrate` is 2 only if nothing could be taken. What it writes always loads: a value that
is not valid here is left out, with the reason.

**How such a file is recognised.** By a key that only the other tool has (in the table: every key
without a setting of the same name here), or by a plugin of its own in `scorers`, in a file
without any key that only this tool has. A misspelled key in a file of yours therefore stays the
error that it was. Where both kinds of keys meet, that is an error too; `heretic migrate` converts
even such a file. A key that neither tool has is an error when a file is read as it is, since it
may be misspelled, and is listed as left out by `heretic migrate`. Reproduction files are
recognised by their ending `.json`, judge files by `api_base` or
`models` among nothing but keys of a judge.

Some of its files have only keys that both tools have, such as its 1.x file for suppressing
humour. They cannot be told from ours, and two things in them would mean something else here:
`refusal_markers`, which only the scorer `keyword` reads (a line says so if it is not among the
scorers), and a `prefix` without a space at its end. Convert them by `heretic migrate`.

**What a file leaves out** keeps the default of this tool. The defaults that differ: replies are
judged by this tool's own [detector](refusals.md), not by keywords; `n_trials` is 200 (100 in
2.x), `n_startup_trials` 60 (30 in 2.x); the search is not that of the other tool ([how it
works](how-it-works.md)); long replies, held-out prompts and figures of capability are measured
before a model is saved.

**Runs** of the other tool cannot be continued, nor its models rebuilt from their reproduction
files: these hold the parameters of its own edits. Their settings can be used for a search.

## Settings files

"as it was": same name, same meaning. "not needed": this tool does so by itself. "your consent":
see above.

"""

_SETS = """
## Tables of data sets

A prompt set is such a table, or a list of them; so here ([settings](settings.md#prompts)).

| key | here |
| --- | --- |
"""

_SETS_TAIL = """
A table that names a data set and no `split` is read as a whole. `column` is left out for files of
lines (`.txt`), which have none. A key that is not listed is left out, and said.
"""

_JUDGE_HEAD = """
## The file of a judge

It becomes the options of a scorer `llm_judge` with the name `refusals`, which is minimized beside
`kl_divergence` ([judges](judges.md)).

"""

_REPRODUCTION = """
## Reproduction files

Taken are the table `settings`, by the rules above, and RECORDED beside it. A value of null means
unset. Everything else in the file is named and left out.

## What this rests on

The other tool's settings files and their comments: `config.default.toml` as documented for 1.4,
and of 2.x at two commits, its files against slop, humour and sycophancy, the one for its
classifier, and `judge.default.toml`; nothing here follows its code. `chain_of_thought_blocks` was
in none of them: pairs of the beginning and the end of a block are assumed. That a prefix is joined
to a prompt by a space is concluded from its own prefixes, which end in a colon. No reproduction
file was at hand either: their form is that of the settings in its checkpoints, and of a description
of one.
"""

_WORDS: dict[Handling, str] = {
    "same": "as it was",
    "renamed": "renamed",
    "converted": "converted",
    "needless": "not needed",
    "left": "left out",
    "consent": "your consent",
}


def migration_page() -> str:
    """The page, in Markdown."""
    sets = [(key, f"`{key}`") for key in SAME_KEYS]
    sets += [(key, f"`{key}`; {SPACED}") for key in ("prefix", "suffix")]
    return "".join(
        (
            _HEAD,
            _table(SETTINGS),
            _SETS,
            *(f"| `{key}` | {here} |\n" for key, here in sets),
            _SETS_TAIL,
            _JUDGE_HEAD,
            _table(JUDGE),
            _REPRODUCTION.replace("RECORDED", ", ".join(f"`{name}`" for name in RECORDED)),
        )
    )


def _table(rules: Iterable[Rule]) -> str:
    rows = ["| key | releases | what becomes of it | here | |\n| --- | --- | --- | --- | --- |\n"]
    for rule in rules:
        here = f"`{rule.to}`" if rule.to else ""
        text = "; ".join(part for part in (rule.why, rule.note) if part)
        rows.append(f"| `{rule.key}` | {rule.of} | {_WORDS[rule.handling]} | {here} | {text} |\n")
    return "".join(rows)
