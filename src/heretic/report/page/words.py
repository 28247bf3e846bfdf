"""What a page says in tables and texts, as plain data for the template."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heretic.config.schema import SettingInfo, settings_of
from heretic.records.statistics import wilson
from heretic.records.trial import Score, ends_text, words_of
from heretic.refusals import LABELS
from heretic.report.page.run import RunData
from heretic.runs.events import work_times
from heretic.runs.listing import target_of
from heretic.runs.shown import ORIGINAL, Reply, ReplySet
from heretic.system.display import format_duration

SHOWING = ("refusal", "evasion", "partial", "degenerate")
"""Labels that the tables of categories count; answers are the rest."""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text. Columns after the first hold figures unless `texts` is set."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a reply; `marked` is the part that decided the verdict."""

    text: str
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """A reply on the page.

    Attributes:
        model: Whose it is.
        label: Of the refusal detector; empty without one.
    """

    model: str
    label: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt with the replies of several models."""

    prompt: str
    system: str
    category: str
    replies: tuple[Shown, ...]

    @property
    def labels(self) -> str:
        """All labels, for the filter."""
        return " ".join(sorted({reply.label for reply in self.replies if reply.label}))

    @property
    def after(self) -> list[str]:
        """The labels of the models after the first, each once."""
        return list(dict.fromkeys(reply.label for reply in self.replies[1:] if reply.label))

    @property
    def changed(self) -> bool:
        """Whether the models' labels differ."""
        return len({reply.label for reply in self.replies}) > 1


@dataclass(frozen=True, slots=True)
class Exchanges:
    """Replies to one prompt set at one length."""

    name: str
    title: str
    labels: tuple[str, ...]
    rows: tuple[Exchange, ...]
    categories: Table | None


def model_name(run: RunData) -> str:
    """The last part of the model's path or Hub id: what stands before it may name a person."""
    return Path(run.manifest.model).name or run.manifest.model


def facts(run: RunData) -> list[tuple[str, str]]:
    """What a run is and how far it has come."""
    complete = sum(trial.state == "complete" for trial in run.trials)
    failed = len(run.trials) - complete
    target = target_of(run.manifest)
    found = run.manifest.found
    times = work_times(run.events)
    rows = [
        ("state", run.state),
        ("trials", f"{complete} of {target}" if target else str(complete)),
        (
            "ended early",
            f"{run.ended_early}, since another is better" if run.ended_early else "",
        ),
        ("failed", str(failed) if failed else ""),
        ("search", str(found.get("search", ""))),
        ("seed", str(run.manifest.seed)),
        ("begun", run.manifest.created.replace("T", " ").replace("+00:00", " UTC")),
        ("commands ran for", format_duration(times[-1]) if times else ""),
        ("device", f"{found.get('device', '')}, {found.get('dtype', '')}".strip(", ")),
        ("layers", str(found.get("layers", ""))),
        ("edited", ", ".join(map(str, found.get("components", [])))),
    ]
    return [(name, value) for name, value in rows if value]


def proposals(run: RunData) -> Table:
    """The original, the trials that the front proposes, and those saved, with intervals."""
    names = [score.name for score in run.baseline]
    return Table(("", *map(words_of, names)), tuple(_rows_by(names, run)))


def _cells(names: Sequence[str], scores: Iterable[Score]) -> tuple[str, ...]:
    known = {score.name: score for score in scores}
    return tuple(known[name].with_interval() if name in known else "" for name in names)


def compared(runs: Sequence[RunData]) -> Table:
    """The proposed and saved trials of several runs."""
    names = list(dict.fromkeys(score.name for run in runs for score in run.baseline))
    rows = [(run.name, label, *cells) for run in runs for label, *cells in _rows_by(names, run)]
    return Table(("run", "model", *map(words_of, names)), tuple(rows))


def _rows_by(names: Sequence[str], run: RunData) -> list[tuple[str, ...]]:
    found = [("original model", *_cells(names, run.baseline))]
    saved = {one.trial: None for one in run.shown.exports if one.trial not in run.proposed}
    for number in (*run.proposed, *saved):
        trial = run.trial(number)
        if trial is not None:
            label = run.label(number) + (" (saved)" if number in saved else "")
            found.append((label, *_cells(names, trial.scores)))
    return found


def exports(run: RunData, share: bool) -> list[tuple[str, Table]]:
    """A heading and a table of scores for each saved trial, the last first."""
    found = []
    for one in reversed(run.shown.exports):
        place = "" if share else f" in {one.folder}"
        title = f"{run.label(one.trial).capitalize()}, saved{place} ({one.strategy}, {one.at[:10]})"
        found.append((title, _scores_table(one.rows)))
        if one.long:
            title = f"The same, on replies of up to {one.tokens} tokens"
            found.append((title, _across(one.long)))
    return found


def _scores_table(rows: Mapping[str, Sequence[Score]]) -> Table:
    names = list(dict.fromkeys(score.name for scores in rows.values() for score in scores))
    return Table(
        ("", *map(words_of, names)),
        tuple((label, *_cells(names, scores)) for label, scores in rows.items()),
    )


def _across(rows: Mapping[str, Sequence[Score]]) -> Table:
    """A row for each score, since there are many."""
    names = list(dict.fromkeys(score.name for scores in rows.values() for score in scores))
    cells = {label: _cells(names, scores) for label, scores in rows.items()}
    return Table(
        ("score", *rows),
        tuple(
            (words_of(name), *(cells[label][i] for label in rows)) for i, name in enumerate(names)
        ),
    )


def replies(run: RunData) -> list[Exchanges]:
    """The kept replies, set by set."""
    return [_exchanges(run, found) for found in run.shown.replies if found.prompts]


def _exchanges(run: RunData, found: ReplySet) -> Exchanges:
    models = {
        model: "original" if model == ORIGINAL else run.label(int(model)) for model in found.replies
    }
    rows = tuple(
        Exchange(
            asked.user,
            asked.system or "",
            asked.category or "",
            tuple(_shown(models[model], some[place]) for model, some in found.replies.items()),
        )
        for place, asked in enumerate(found.prompts)
    )
    used = {reply.label for row in rows for reply in row.replies}
    return Exchanges(
        f"{found.name}-{found.tokens}",
        f"Replies to {found.name} prompts, up to {found.tokens} tokens",
        tuple(label for label in LABELS if label in used),
        rows,
        _by_category(found, models),
    )


def _shown(model: str, reply: Reply) -> Shown:
    text, span = reply.text, reply.span
    answers = reply.label in (None, "compliance")  # then the whole reply decided
    if answers or span is None or not 0 <= span[0] < span[1] <= len(text):
        return Shown(model, reply.label or "", (Part(text),))
    parts = (Part(text[: span[0]]), Part(text[span[0] : span[1]], True), Part(text[span[1] :]))
    return Shown(model, reply.label or "", tuple(part for part in parts if part.text))


def _by_category(found: ReplySet, models: Mapping[str, str]) -> Table | None:
    """How many replies are no answers, by category of the prompts; None without labels."""
    if not any(reply.label for rows in found.replies.values() for reply in rows):
        return None
    categories = [prompt.category or "" for prompt in found.prompts]
    named = [name for name in dict.fromkeys(categories) if name]
    rows = []
    for name in [*named, None] if len(named) > 1 else [None]:
        places = [i for i, one in enumerate(categories) if name is None or one == name]
        cells = [_count([rows_[i].label for i in places]) for rows_ in found.replies.values()]
        rows.append((name or "all", str(len(places)), *cells))
    return Table(("category", "prompts", *models.values()), tuple(rows))


def _count(labels: Sequence[str | None]) -> str:
    counts = Counter(label for label in labels if label in SHOWING)
    total = sum(counts.values())
    ends = ends_text(wilson(total, len(labels)))
    parts = ", ".join(f"{counts[label]} {label}" for label in SHOWING if counts[label])
    return f"{total}/{len(labels)} [{ends}]" + (f" ({parts})" if parts else "")


def changed_settings(run: RunData, share: bool) -> Table:
    """Settings that differ from their defaults."""
    rows = [
        (".".join(setting.path), _value(value))
        for setting, value in _changed(run)
        if not share or _tells_nothing(setting, value)
    ]
    return Table(("setting", "value"), tuple(rows), texts=True)


def _changed(run: RunData) -> Iterator[tuple[SettingInfo, Any]]:
    """Settings, and keys of tables, that differ from their defaults, with their values."""
    for setting in settings_of():
        found, usual = run.manifest.settings.get(setting.name), _plain(setting.default)
        if setting.name not in run.manifest.settings or _plain(found) == usual:
            continue
        if setting.kind != "table" or not isinstance(found, Mapping):
            yield setting, found
            continue
        for key in setting.keys:
            value = found.get(key.name)
            if _plain(value) != (usual or {}).get(key.name, _plain(key.default)):
                yield key, value


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value, default=_jsonable, sort_keys=True))


def _jsonable(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


def _tells_nothing(setting: SettingInfo, value: Any) -> bool:
    """Whether a value can hold no prompt, path or name."""
    return setting.kind == "choice" or value is None or isinstance(value, bool | int | float)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def command(run: RunData) -> str:
    """The command that makes the run again."""
    words = ["heretic", run.manifest.model]
    for setting, value in _changed(run):
        if setting.name in ("model", "seed", "checkpoint_action") or value is None:
            continue
        if isinstance(value, bool):
            words.append(setting.option if value else setting.option_off)
        else:
            words.append(f"{setting.option}={_value(value)}")
    return shlex.join([*words, f"--seed={run.manifest.seed}"])


def environment(run: RunData) -> Table:
    """Versions of packages."""
    rows = tuple(sorted(run.manifest.versions.items()))
    return Table(("package", "version"), rows, texts=True)
