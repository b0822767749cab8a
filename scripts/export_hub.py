"""From a checkpoint to a model repository that a stranger can use, trust and cite.

python scripts/export_hub.py --model_name_or_path outputs/camvid --model_id faseg-mobilenetv2-camvid \
    --results results/faseg-mobilenetv2-camvid.json --sample_images street.jpg --output_dir outputs/hub --dry_run

writes the folder: weights, configuration, both processors, code, card, recipe, log, sample images, licences.
`--push --repo_id USER/NAME` in place of `--dry_run` also uploads it, in one commit, and loads it back as a stranger
would. The same command again changes nothing, or goes on where it was cut.

python scripts/export_hub.py --model_name_or_path outputs/mine --init_card my_card.yaml

writes the card of a model of your own: what is known of it, and blanks to fill in; the export takes it by `--card`.
"""

from __future__ import annotations

import sys
from pathlib import Path


if not __package__:  # started as a file: import the project from its root, never neighbours by their bare names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scripts.cli.errors import UserError, errors_explained
from scripts.cli.parser import ReadPath, check_folder, flag, parse_arguments, path_flag, run_command, start_of
from scripts.models.arguments import ModelArguments
from scripts.storage.atomic import write_errors_explained
from scripts.storage.outputs import check_output_file


if TYPE_CHECKING:
    from scripts.sharing.repository import Export


@dataclass
class ExportArguments:
    """Write a checkpoint as a model repository, and push it to the Hub."""

    model_name_or_path: str | None = path_flag("Folder of the checkpoint, or its name on the Hub (user/name).")
    model_id: str | None = flag(None, "Name of the folder in hub_cards/ that holds the facts for the model card.")
    card: str | None = path_flag(
        "card.yaml with the facts of a model of your own; those in hub_cards/ show what it holds."
    )
    init_card: str | None = flag(
        None,
        "YAML file to write for --card, with what is known of the model and blanks to fill in; nothing else is done.",
    )
    results: str | None = path_flag(
        "Results file of eval.py for this checkpoint; without it the card says 'not measured'."
    )
    output_dir: str | None = flag(None, "Folder to write; an earlier export in it is replaced.")
    sample_images: list[str] = flag(
        [], "Images that the card shows beside their segmentation by the model.", action=ReadPath
    )
    max_shard_size: str = flag("5GB", "Size above which the weights are split into several files, such as 500MB.")
    dry_run: bool = flag(False, "Write the folder and check that it loads; upload nothing.")
    push: bool = flag(False, "Write the folder, upload it, and check that it loads from the Hub.")
    repo_id: str | None = flag(None, "Name of the repository on the Hub: USER/NAME.")
    private: bool = flag(False, "Make a new repository private.")
    revision: str | None = flag(None, "Tag that the upload gets, such as v1.0.")
    space: bool = flag(
        False,
        "Also write a demo page for visitors into OUTPUT_DIR-space, and with --push upload it as the Space USER/NAME.",
    )


def check_arguments(arguments: ExportArguments) -> None:
    """Raises `UserError` at values that cannot work, before anything is loaded."""
    if arguments.init_card:
        check_init_card(arguments, Path(arguments.init_card))
        return
    for name in ("model_name_or_path", "model_id", "output_dir"):
        if not getattr(arguments, name):
            raise UserError(f"--{name} is missing")
    if arguments.dry_run == arguments.push:
        raise UserError("give --dry_run (write the folder) or --push (write it and upload it)")
    if arguments.push and not arguments.repo_id:
        raise UserError("--push needs --repo_id USER/NAME")
    if arguments.space and not arguments.repo_id:
        raise UserError("--space needs --repo_id USER/NAME: the demo names the model that it shows")
    for name in ("private", "revision"):
        if getattr(arguments, name) and not arguments.push:
            raise UserError(f"--{name} needs --push")
    check_folder("--output_dir", Path(str(arguments.output_dir)))
    if arguments.repo_id:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        with errors_explained(f"--repo_id {arguments.repo_id}", HFValidationError):
            validate_repo_id(arguments.repo_id)
        if "/" not in arguments.repo_id:
            raise UserError(f"--repo_id {arguments.repo_id}: write USER/NAME")
    from transformers.utils.hub import convert_file_size_to_int

    try:
        convert_file_size_to_int(arguments.max_shard_size)
    except ValueError as error:
        raise UserError(f"--max_shard_size {arguments.max_shard_size}: write a number and MB or GB") from error


def check_init_card(arguments: ExportArguments, file: Path) -> None:
    """Raises `UserError` where no card can be started."""
    if not arguments.model_name_or_path:
        raise UserError("--model_name_or_path is missing")
    for name in ("card", "dry_run", "push", "space"):
        if getattr(arguments, name):
            raise UserError(f"--init_card writes a card and exports nothing: leave out --{name}")
    check_output_file("--init_card", file, overwrite=False)
    if file.exists():
        raise UserError(f"--init_card {file} is there, and may be filled in already: name another file, or remove it")


def recipe_of(checkpoint: str) -> dict[str, Any]:
    """The recipe beside a checkpoint; empty where there is none, or what is there is none."""
    from scripts.sharing.card_facts import read_yaml

    file = Path(checkpoint) / "recipe.yaml"
    found = read_yaml(file) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def init_card(arguments: ExportArguments) -> None:
    """Writes the card to fill in, and says what is left to do."""
    from scripts.models.loading import build_config
    from scripts.sharing import fit
    from scripts.sharing.new_card import Known, write_card
    from scripts.sharing.repository import check_measured_on
    from scripts.sharing.results_files import read_results

    checkpoint, file = str(arguments.model_name_or_path), Path(str(arguments.init_card))
    config = build_config(ModelArguments(model_name_or_path=checkpoint))
    results = read_results(Path(arguments.results)) if arguments.results else None
    if results is not None:
        fit.check_results(results, config)
        check_measured_on(results, checkpoint)
    with write_errors_explained(file):
        blanks = write_card(file, Known(config, recipe_of(checkpoint), results))
    print(f"card written to {file}; to be filled in: {', '.join(blanks)}")
    print(f"then export with --card {file}")


def load_export(arguments: ExportArguments) -> Export:
    """The checkpoint with its facts and figures, checked.

    Raises:
        UserError: it is no whole checkpoint, or the figures are of another.
    """
    from scripts.data.bands import form_of
    from scripts.models.licences import check_keeps_licence
    from scripts.models.loading import build_config, build_model, build_processor, refuse_non_finite
    from scripts.sharing import fit
    from scripts.sharing.card_facts import HUB_CARDS, card_file, read_card, read_published
    from scripts.sharing.repository import Export, check_code_knows, check_measured_on
    from scripts.sharing.results_files import read_results

    checkpoint = str(arguments.model_name_or_path)
    card = Path(arguments.card) if arguments.card else card_file(str(arguments.model_id))
    facts = read_card(card)
    results = read_results(Path(arguments.results)) if arguments.results else None
    named = ModelArguments(model_name_or_path=checkpoint)
    config = build_config(named)
    if not arguments.card and not str(arguments.model_id).startswith(f"{config.model_type}-"):
        raise UserError(
            f"--model_id {arguments.model_id}: {checkpoint} is a {config.model_type} model: name one of that type "
            "in hub_cards/, or write a card of your own for --card"
        )
    check_code_knows(type(config), checkpoint)
    check_keeps_licence(facts.licence, config)
    fit.check_card(facts, card, config)
    if arguments.model_id in read_published():  # whose figures the card then shows
        fit.check_described(HUB_CARDS / str(arguments.model_id), config)
    fit.check_dataset(facts, fit.trained_on(recipe_of(checkpoint)), f"{checkpoint}/recipe.yaml")
    processor = build_processor(named, config)
    fit.check_processor(processor, config, checkpoint)
    for name in arguments.sample_images:
        fit.check_sample(Path(name), form_of(config, processor))
    model = build_model(named, config, new_classes=False).eval()
    refuse_non_finite(model, f"--model_name_or_path {checkpoint}", ": nothing to share")
    if results is not None:
        fit.check_results(results, config, model.num_parameters())
        fit.check_dataset(facts, results["dataset"], f"--results {arguments.results}")
        check_measured_on(results, checkpoint)
    return Export(
        checkpoint,
        model,
        processor,
        facts,
        str(arguments.model_id),
        arguments.repo_id or f"USER/{arguments.model_id}",
        results,
        [Path(name) for name in arguments.sample_images],
        arguments.max_shard_size,
    )


def write_space_folder(arguments: ExportArguments, folder: Path) -> Path:
    """Writes the demo beside the repository's folder, in place of an earlier one.

    Raises:
        UserError: something else is there.
    """
    from scripts.sharing.leaks import SPACE_ALLOWED, check_leaks, repository_files
    from scripts.space import SAMPLES, SPACE_FILES, write_space

    space = folder.with_name(f"{folder.name}-space")
    if space.exists() and any(space.iterdir()):
        repository_files(space, SPACE_ALLOWED)
        if lacking := [file.name for file in SPACE_FILES if not (space / file.name).is_file()]:
            raise UserError(f"{space} is no earlier demo, it has no {lacking[0]}: name another --output_dir")
    write_space(space, str(arguments.repo_id), samples=sorted(folder.glob(SAMPLES)))
    check_leaks(space, SPACE_ALLOWED)
    return space


def export(arguments: ExportArguments) -> None:
    """Writes the repository's folder, checks it, and uploads it where the arguments ask for that."""
    # ---- arguments, checkpoint, figures ----
    check_arguments(arguments)
    if arguments.init_card:
        init_card(arguments)
        return
    import torch

    from scripts.sharing.clean_load import load_back
    from scripts.sharing.hub import push
    from scripts.sharing.leaks import SPACE_ALLOWED, check_leaks
    from scripts.sharing.repository import check_output, write_repository

    folder = Path(str(arguments.output_dir))
    check_output(folder, str(arguments.model_name_or_path))
    export = load_export(arguments)
    if export.results is None:
        print(f"no --results: the card says 'not measured'; {start_of('eval')} --output_file FILE writes them")

    # ---- folder, looked through for what must not leave ----
    if torch.accelerator.is_available():
        export.model.to(torch.accelerator.current_accelerator())
    write_repository(export, folder)
    names = check_leaks(folder)
    size = sum((folder / name).stat().st_size for name in names)
    print(f"{len(names)} files, {size / 1e6:.1f} MB, written to {folder}")
    space = write_space_folder(arguments, folder) if arguments.space and export.image_form.is_plain else None
    if space:
        print(f"demo written to {space}")
    elif arguments.space:
        print("no demo written: its page takes RGB images of 8 bits, and the model reads others")

    # ---- as a stranger sees it ----
    difference = load_back(str(folder.resolve()), None, export.model, export.processor)
    print(f"loads without this project; largest difference of logits {difference:.2g}")
    if arguments.dry_run:
        return

    # ---- Hub ----
    repo_id = str(arguments.repo_id)
    pushed = push(folder, names, repo_id, arguments.private, arguments.revision, f"Upload {arguments.model_id}")
    print(f"{pushed.url}: {'commit' if pushed.changed else 'nothing to change, already at commit'} {pushed.commit}")
    if space:
        files = check_leaks(space, SPACE_ALLOWED)
        demo = push(space, files, repo_id, arguments.private, None, "Upload demo", "space", SPACE_ALLOWED)
        print(f"{demo.url}: {'commit' if demo.changed else 'nothing to change, already at commit'} {demo.commit}")
    try:
        difference = load_back(repo_id, pushed.commit, export.model, export.processor)
    except UserError as error:
        raise UserError(f"pushed as commit {pushed.commit[:12]}, but {error}") from error
    print(f"loads from the Hub without this project; largest difference of logits {difference:.2g}")


def main() -> None:
    export(parse_arguments(ExportArguments))


if __name__ == "__main__":
    run_command(main)
