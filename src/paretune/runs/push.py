"""A run's points on the Hugging Face hub: weights, cards and the front, in one commit each."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.errors import InputError
from paretune.experiment.ground import TOKENIZER
from paretune.files import read_object
from paretune.names import shown
from paretune.report.model_card import CARD, MARK, hub_model, model_card
from paretune.report.run_card import run_card
from paretune.results.run_folder import Run
from paretune.results.weights import ADAPTER, check_weights, weight_files
from paretune.serving.choose import Candidate, open_run

_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_CONFIG, _ = ADAPTER
_MORE = ("generation_config.json", "prompt.json")
_OF_RUN = ("front.json", "front.png")
_OURS = {".gitattributes"}  # what the hub puts into a new repository

Files = Mapping[str, Path | bytes]
"""What goes into a repository, by path."""


@dataclass(frozen=True)
class Pushed:
    """A repository that was written.

    Attributes:
        url: of the commit.
        size: of its files, in bytes.
    """

    repo: str
    url: str
    private: bool
    files: int
    size: int


def push_run(
    folder: Path,
    repo: str,
    *,
    each: bool = False,
    public: bool = False,
    method: str | None = None,
    base: str | None = None,
    report: Callable[[str], None] = lambda what: None,
) -> list[Pushed]:
    """Put the points of a run on the hub, with a model card each.

    A repository gets one commit, after which it holds what is pushed and nothing else; it is made
    if it is not there. Neither recipe nor logs nor data leave this machine.

    Args:
        repo: ``owner/name``: of one repository with a folder a point.
        each: A repository for each point instead, called ``owner/name-<point>``.
        public: New repositories are private without it, and one that everybody can read is refused.
        method: Of a comparison, which of its methods.
        base: The base model's id on the hub, where the run has it from a folder.
        report: Is told what is being done.

    Raises:
        InputError: a run without weights, a base model that nobody else could load, a repository
            that holds something else or is public, or a hub that cannot be reached or refuses.
    """
    _check_id(repo)
    choices, run = open_run(folder, method=method), Run.read(folder)
    base = hub_model(choices.recipe.model.name) if base is None else base
    adapters = any(not candidate.whole for candidate in choices.candidates)
    if adapters and base is None:
        raise InputError(
            f"The adapters of '{folder}' are of the base model {shown(choices.recipe.model.name)}, "
            "which others do not have: put it on the hub, and give its id with --base."
        )
    if base is not None:
        _check_id(base)

    def files(candidate: Candidate, place: str) -> dict[str, Path | bytes]:
        check_weights(candidate.folder)
        found = _files(candidate, base)
        if CARD not in found:
            text = model_card(
                run,
                choices.method,
                candidate.point,
                adapter=not candidate.whole,
                place=place,
                base=base if adapters else None,
            )
            found[CARD] = text.encode()
        return found

    repos: dict[str, dict[str, Path | bytes]] = {}
    if each:
        for candidate in choices.candidates:
            name = f"{repo}-{candidate.name}"
            repos[name] = files(candidate, f'"{name}"')
    else:
        found = {name: folder / name for name in _OF_RUN if (folder / name).is_file()}
        repos[repo] = dict(found)
        for candidate in choices.candidates:
            place = f'"{repo}", subfolder="{candidate.name}"'
            for name, content in files(candidate, place).items():
                repos[repo][f"{candidate.name}/{name}"] = content
        points = {candidate.name: candidate.point for candidate in choices.candidates}
        picture = "front.png" if "front.png" in found else None
        card = run_card(run, choices.method, points, repo, base, adapters, picture)
        repos[repo][CARD] = card.encode()
    return list(_send(repos, public, f"{run.name}: {choices.method}", report))


def _check_id(repo: str) -> None:
    if not _ID.fullmatch(repo):
        raise InputError(f"{shown(repo)} is no name on the hub: write OWNER/NAME.")


def _files(candidate: Candidate, base: str | None) -> dict[str, Path | bytes]:
    """The files of a point, by name; the base of an adapter is what others call it."""
    import json

    folder = candidate.folder
    found: dict[str, Path | bytes] = {path.name: path for path in weight_files(folder)}
    if not candidate.whole:
        config = {**read_object(folder / _CONFIG), "base_model_name_or_path": base}
        found[_CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    for name in (*_MORE, *TOKENIZER):
        if (folder / name).is_file():
            found[name] = folder / name
    card = folder / CARD
    if card.is_file() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        found[CARD] = card  # its user's own
    return found


def _send(
    repos: Mapping[str, Files], public: bool, message: str, report: Callable[[str], None]
) -> Iterator[Pushed]:
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise InputError(
            "Nobody is logged in to the hub: run `hf auth login`, or put a token that may write "
            "into the environment variable HF_TOKEN."
        )
    api = HfApi(library_name="paretune")
    there = {}
    for repo in repos:
        with _told(repo):
            there[repo] = _look(api, repo, public)
    for repo, files in repos.items():
        report(f"{repo}: {len(files)} files")
        with _told(repo):
            yield _commit(api, repo, files, there[repo], public, message)


def _look(api: Any, repo: str, public: bool) -> Any:
    """What the hub knows of a repository; None if it is not there.

    Raises:
        InputError: it is public, which was not asked for, or holds something else.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        return None
    if not info.private and not public:
        raise InputError(
            f"Everybody can read '{repo}': give --public if that is meant, or another --repo."
        )
    names = {sibling.rfilename for sibling in info.siblings or ()} - _OURS
    if names:
        card = Path(api.hf_hub_download(repo, CARD)) if CARD in names else None
        if card is None or MARK not in card.read_text(encoding="utf-8", errors="replace"):
            raise InputError(
                f"'{repo}' holds something that `paretune push` has not put there: give another "
                "--repo, or empty it."
            )
    return info


def _commit(api: Any, repo: str, files: Files, info: Any, public: bool, message: str) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if info is None:
        api.create_repo(repo, private=not public, exist_ok=True)
    old = {sibling.rfilename for sibling in info.siblings or ()} - _OURS if info else set()
    operations: list[Any] = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in files.items()
    ]
    operations += [CommitOperationDelete(path) for path in sorted(old - files.keys())]
    commit = api.create_commit(repo, operations, commit_message=message)
    sizes = (len(c) if isinstance(c, bytes) else c.stat().st_size for c in files.values())
    private = not public if info is None else bool(info.private)
    return Pushed(repo, commit.commit_url, private, len(files), sum(sizes))


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Say what the hub has against it."""
    from httpx import HTTPError

    try:
        yield
    except InputError:
        raise
    except (HTTPError, OSError, ValueError) as error:  # those of huggingface_hub are such
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"'{repo}' could not be written on the hub ({reason}): see its name, your token's "
            "rights and the network; the same command may be given again."
        ) from error
