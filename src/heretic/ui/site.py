"""What all tabs share: where runs lie, what may be shown, the worker, and reports."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from heretic.errors import HereticError, RunError
from heretic.runs.listing import Known, RunSummary, all_run_folders, list_runs, name_of
from heretic.system.display import safe
from heretic.ui.job import Job
from heretic.ui.keys import key_of
from heretic.ui.places import Places
from heretic.ui.reports import Reports
from heretic.ui.uploads import USUAL
from heretic.ui.views import FrontView, front_of, stage_text
from heretic.ui.watch import Watch, Watches

LIST_SECONDS = 2.0
"""Between two readings of all runs, however many tabs show them."""

WHOLE = "train"
"""The split that holds all rows of a file."""


@dataclass
class Site:
    """The state of the server.

    Attributes:
        runs: Folder of the run folders.
        places: What pickers show.
    """

    runs: Path
    places: Places
    job: Job
    watches: Watches = field(default_factory=Watches)
    reports: Reports = field(default_factory=Reports)
    _fronts: dict[Path, tuple[tuple[int, int], FrontView]] = field(default_factory=dict)
    _key: tuple[Path, str] | None = None  # of the run that was asked for last
    _known: Known = field(default_factory=dict)
    _listed: Sequence[RunSummary] = ()
    _listed_at: float = float("-inf")
    _listing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def listed(self) -> Sequence[RunSummary]:
        """The runs, as they were at most two seconds ago; read beside the event loop.

        Raises:
            RunError: Their folder cannot be read.
        """
        async with self._listing:
            if monotonic() - self._listed_at >= LIST_SECONDS:
                began = monotonic()
                self._listed = await asyncio.to_thread(list_runs, self.runs, self._known)
                self._listed_at = began
            return self._listed

    def path_of(self, key: str) -> Path:
        """The run folder of that name, which is one of the list.

        Raises:
            RunError: There is none.
        """
        for folder in all_run_folders(self.runs):
            if key_of(name_of(folder.path, self.runs)) == key:
                return folder.path
        raise RunError(f"There is no run of that name in {self.runs}.")

    def key_of(self, run: Path) -> str:
        """What addresses call a run, whose path has no links."""
        if self._key is not None and self._key[0] == run:
            return self._key[1]
        with suppress(RunError):  # the folder cannot be read, as the list says
            for folder in all_run_folders(self.runs):
                if Path(os.path.realpath(folder.path)) == run:
                    self._key = run, key_of(name_of(folder.path, self.runs))
                    return self._key[1]
        return run.name

    async def watch(self, key: str) -> Watch:
        """The watch of a run of the list, read once.

        Raises:
            RunError: There is none.
        """
        watch = self.watches.of(self.path_of(key))
        await asyncio.to_thread(watch.look if watch.data is not None else watch.read)
        return watch

    async def front(self, watch: Watch) -> FrontView:
        """The front of a run, made once for all tabs; they look at the folder here, too."""
        await asyncio.to_thread(watch.look)
        version = (watch.trials_version, watch.reads)
        kept = self._fronts.get(watch.path)
        if kept is None or kept[0] != version:
            kept = (version, await asyncio.to_thread(front_of, watch))
            self._fronts[watch.path] = kept
        return kept[1]

    async def opening(self) -> str:
        """What is being opened and how far that has come, for people; empty if nothing is."""
        job = self.job
        if not job.opening:
            return ""
        stage = job.loading
        if job.run is not None:
            watch = self.watches.of(job.run)
            await asyncio.to_thread(watch.look)
            found = watch.progress.stage
            stage = safe(stage_text(found)) if found is not None else stage
        return f"{safe(job.opening)}: {stage}".rstrip(": .")

    def is_held_elsewhere(self, watch: Watch) -> bool:
        """Whether another process than this page's worker works on a run."""
        return watch.is_locked and not self.is_ours(watch)

    def is_ours(self, watch: Watch) -> bool:
        """Whether this page's worker has the run open, or is opening it."""
        job = self.job
        if job.run != watch.path:
            return False
        return job.is_busy or job.is_open(watch.path)

    def state_of(self, watch: Watch) -> str:
        """What a run is doing, in a word."""
        if not self.is_ours(watch):
            return watch.state
        state = self.job.state.state
        return "loading" if self.job.opening else "loaded" if state == "ready" else state

    def own_states(self, runs: Sequence[RunSummary]) -> dict[Path, str]:
        """What the run of this page's worker is doing: its folder tells only that it is in use."""
        run = self.job.run
        if run is None:
            return {}
        watch = self.watches.of(run)
        paths = (one.path for one in runs if Path(os.path.realpath(one.path)) == run)
        return {path: self.state_of(watch) for path in paths if self.is_ours(watch)}

    async def close(self) -> None:
        """End the worker after its batch, and delete reports."""
        try:
            await self.job.close()
        finally:
            self.reports.close()


@dataclass(frozen=True, slots=True)
class Named:
    """A prompt set as it is named on the page.

    Attributes:
        name: Of its setting.
        dataset: File, folder, or data set on the Hub.
        split: Empty for all rows of a file, and of other sets for those that the settings say.
        column: Empty for the usual one.
    """

    name: str
    dataset: str
    split: str = ""
    column: str = ""

    def setting(self, places: Places, more: Mapping[str, object]) -> dict[str, object]:
        """The value of its setting.

        What config.toml or a behaviour says of rows, column, subset and categories is about the
        set that it names, so that none of it counts for a file.

        Args:
            more: What stands in the other settings of this page about it; the fields lie above.

        Raises:
            HereticError: The file lies where this page does not look.
        """
        dataset = self.dataset.strip()
        usual = {"column": USUAL}
        if dataset.startswith(("/", ".", "~")) or Path(dataset).exists():
            path = places.checked(dataset)
            dataset = str(path)
            if path.is_file():
                usual |= {"split": WHOLE, "config": "", "category_column": ""}
        fields = {"split": self.split.strip(), "column": self.column.strip()}
        said = {name: value for name, value in fields.items() if value}
        return {**usual, **more, "dataset": dataset, **said}


@dataclass(frozen=True, slots=True)
class Form:
    """What the page for a new search holds, as texts.

    Attributes:
        source: `demo`, `hub` or `folder`.
        sets: Prompt sets.
        more: Other settings, as TOML; of a set that is named above, what the page cannot say.
    """

    source: str
    model: str = ""
    behavior: str = ""
    n_trials: int | None = None
    time_limit: str = ""
    sets: tuple[Named, ...] = ()
    more: str = ""

    def settings(self, places: Places) -> dict[str, object]:
        """Settings by their names.

        Raises:
            HereticError: Something is missing or malformed, or lies where this page does not look.
        """
        found = _parsed(self.more)
        if self.source == "hub":
            found["model"] = _hub_id(self.model)
        elif self.source == "folder":
            if not self.model.strip():
                raise HereticError("No folder is named.", remedy="Choose the model's folder.")
            found["model"] = str(places.checked(self.model.strip()))
        if self.behavior:
            found["behavior"] = self.behavior
        if self.n_trials is not None:
            found["n_trials"] = self.n_trials
        if self.time_limit.strip():
            found["time_limit"] = self.time_limit.strip()
        for one in self.sets:
            if one.dataset.strip():
                more = found.get(one.name)
                found[one.name] = one.setting(places, more if isinstance(more, dict) else {})
        return found


@dataclass(frozen=True, slots=True)
class Again:
    """What the page of a run holds, as texts, for the time when the run is opened again.

    Attributes:
        n_trials: Complete trials to end with.
        target: Those that the run was begun with; None if unknown.
        more: Other settings, as TOML.
        trust_plugins: As `Open.trust_plugins`.
    """

    n_trials: int | None = None
    target: int | None = None
    more: str = ""
    trust_plugins: bool = False

    @property
    def named(self) -> int | None:
        """The complete trials to end with whether the front grows or not: those of another number.

        None for as many as the settings say, or fewer if the front stops growing.
        """
        return None if self.n_trials == self.target else self.n_trials

    def settings(self) -> dict[str, object]:
        """Settings by their names.

        Raises:
            HereticError: The text is no TOML.
        """
        found = _parsed(self.more)
        if self.target is not None:
            found.setdefault("n_trials", self.target)
        return found


def _hub_id(text: str) -> str:
    text = text.strip()
    parts = text.split("/")
    if not text or len(parts) > 2 or text.startswith((".", "~", "-")) or not all(parts):
        raise HereticError(
            f"{text!r} is no name of a model on the Hub.", remedy="It should be OWNER/NAME."
        )
    return text


def _parsed(text: str) -> dict[str, object]:
    import tomllib

    try:
        found = dict(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise HereticError(
            f"The other settings are no TOML: {error}.", remedy="`heretic config` prints examples."
        ) from error
    try:
        json.dumps(found)  # as they go to the worker
    except TypeError as error:
        raise HereticError(
            "The other settings hold a date or a time, which no setting is.",
            remedy="Put it in quotes.",
        ) from error
    return found
