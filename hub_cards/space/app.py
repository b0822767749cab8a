"""The page: upload images, see and download what a FASeg model finds in them.

Everything it needs lies beside it. `MAX_MEGAPIXELS` and `MAX_IMAGES` in the environment set how much one visitor may
ask for; `ALLOW_ANY_MODEL=1` lets visitors load models that its README does not name. That runs the code in those
models' repositories: leave it off where the Space holds a token.

On a machine of your own it answers that machine alone: another page in your browser could else ask it, under a name
that leads to 127.0.0.1.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterator
from html import escape
from itertools import count
from pathlib import Path
from typing import Any


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")

import gradio as gr
import numpy as np
from huggingface_hub import metadata_load
from PIL import Image
from segment import THRESHOLDS, Found, LoadedModel, Problem, Result, load_model, read_image, segment
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from visualization import IGNORE_INDEX, Palette, class_colour, colour_map, contours


FOLDER = Path(__file__).resolve().parent
MODELS: list[str] = (metadata_load(FOLDER / "README.md") or {})["models"]
EXAMPLES = sorted(str(file) for file in (FOLDER / "examples").glob("*.jpg"))
ON_THE_HUB = "SPACE_ID" in os.environ
LOOPBACK = ("127.0.0.1", "localhost")
LOOPBACK_ONLY = not ON_THE_HUB and os.environ.get("GRADIO_SERVER_NAME", LOOPBACK[0]) in LOOPBACK
ANY_MODEL = os.environ.get("ALLOW_ANY_MODEL") == "1"
MAX_PIXELS = int(float(os.environ.get("MAX_MEGAPIXELS", "24")) * 1e6)
MAX_IMAGES = int(os.environ.get("MAX_IMAGES", "16"))
SHOWN_SIDE = 1600  # pixels: what the page shows; the files have the image's own size
DEFAULT_OPACITY = 0.55

THEME = gr.themes.Soft(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # of the visitor's machine: nothing is fetched
    font_mono=["ui-monospace", "monospace"],
).set(
    body_background_fill="*neutral_50",
    block_title_background_fill="transparent",
    block_title_background_fill_dark="transparent",
    block_title_padding="0",
    block_title_text_color="*body_text_color",
    block_label_background_fill="transparent",
    block_label_background_fill_dark="transparent",
    block_label_border_width="0",
    block_label_border_width_dark="0",
    block_label_shadow="none",
    block_label_text_color="*body_text_color",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
)
SET_OPACITY = "(value) => { document.documentElement.style.setProperty('--overlay-opacity', value); }"
CSS = """
.stack { display: grid; margin: 0; width: min(100%, calc(36rem * var(--ratio)));
  border-radius: 8px; overflow: hidden; align-self: start; }
.stack img { grid-area: 1 / 1; width: 100%; height: auto; margin: 0; display: block; }
.stack .regions { opacity: var(--overlay-opacity, DEFAULT_OPACITY); }
.stack .regions, .stack .lines { image-rendering: pixelated; }
.finding { display: grid; grid-template-columns: minmax(0, 2fr) minmax(15rem, 1fr); gap: 1.25rem; }
.finding .scroll { max-height: 36rem; overflow-y: auto; }
.finding table { width: 100%; border: 0 !important; border-collapse: collapse; font-size: .92rem; margin: 0; }
.finding tr, .finding thead, .finding tbody { border: 0 !important; background: none !important; }
.finding th, .finding td { border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important;
  padding: .4rem .35rem !important; }
.finding th { font-weight: 600; color: var(--body-text-color-subdued); text-align: left; }
.finding .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.finding .name { overflow-wrap: anywhere; }
.swatch { display: inline-block; width: .95rem; height: .95rem; border-radius: 3px; border: 1px solid #8888;
  margin-right: .5rem; vertical-align: -.15rem; }
.problems { border: 1px solid var(--error-border-color); background: var(--error-background-fill);
  color: var(--error-text-color); border-radius: 8px; padding: .7rem 1rem; overflow-wrap: anywhere; }
.problems p { margin: .15rem 0; color: inherit; }
.placeholder { border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: 5rem 1rem;
  text-align: center; color: var(--body-text-color-subdued); }
.note { margin: 0 0 .6rem 0; color: var(--body-text-color-subdued); font-size: .92rem; }
#problems, #view { padding: 0; }
#model input { text-overflow: ellipsis; padding-right: 2rem; }
#problems:not(:has(.problems)) { display: none; }
.strip .grid-wrap { padding: 0; overflow: visible; max-height: none; min-height: 0; }
.strip .grid-container { grid-template-columns: repeat(auto-fill, 6rem); grid-template-rows: none;
  grid-auto-rows: 6rem; gap: .5rem; }
.strip .caption-label { inset: auto .2rem .2rem .2rem; max-width: none; padding: 0 .3rem; font-size: .72rem; }
.strip, .strip > div { background: none !important; border: 0 !important; box-shadow: none !important; padding: 2px; }
@media (max-width: 900px) { .finding { grid-template-columns: minmax(0, 1fr); } }
""".replace("DEFAULT_OPACITY", str(DEFAULT_OPACITY))
NOTE = "<p class='note'>{}</p>"
PLACEHOLDER = "<div class='placeholder'>Upload images, or choose an example, to see what the model finds.</div>"


# ---- what the page shows --------------------------------------------------------------------------------------------


def image_source(image: Image.Image, kind: str) -> str:
    """An image as the `src` of an `<img>`."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def coloured_regions(regions: np.ndarray, shown: np.ndarray, palette: Palette | None = None) -> Image.Image:
    """Opaque colours where something was found and `shown` is true, clear elsewhere."""
    alpha = np.where(shown & (regions != IGNORE_INDEX), 255, 0).astype(np.uint8)
    return Image.fromarray(np.dstack([colour_map(regions, palette), alpha]))


def finding_html(result: Result, title: str) -> str:
    """The image under its regions, whose opacity the page's style sets; the table is the legend too."""
    image = result.image.copy()
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    regions = result.regions.astype(np.int32)
    regions = np.asarray(Image.fromarray(regions).resize(image.size, Image.Resampling.NEAREST))
    areas = coloured_regions(regions, np.full(regions.shape, True), result.palette)
    lines = coloured_regions(regions, contours(regions), result.palette)
    note = NOTE.format(escape(result.note)) if result.note else ""
    return (
        f"{note}<div class='finding'><figure class='stack' style='--ratio: {image.width / image.height:.4f}'>"
        f"<img src='{image_source(image, 'webp')}' alt='{escape(title)}'>"
        f"<img class='regions' src='{image_source(areas, 'png')}' alt='what was found in {escape(title)}'>"
        f"<img class='lines' src='{image_source(lines, 'png')}' alt=''>"
        f"</figure><div class='scroll'>{area_table(result.found, result.regions.size, result.palette)}</div></div>"
    )


def area_table(found: list[Found], all_pixels: int, palette: Palette | None = None) -> str:
    """Colour, name, score if there is one, and area of each class or segment."""
    if not found:
        return "<p>Nothing was found above the threshold: try a lower one.</p>"
    scored = any(entry.score is not None for entry in found)
    rows = "".join(
        f"<tr><td class='name'><span class='swatch' style='background:"
        f"rgb{class_colour(entry.number, palette)}'></span>{escape(entry.name)}</td>"
        + (f"<td class='number'>{entry.score or 0:.2f}</td>" if scored else "")
        + f"<td class='number'>{entry.pixels / all_pixels:.1%}</td><td class='number'>{entry.pixels:,}</td></tr>"
        for entry in found
    )
    score = "<th class='number'>Score</th>" if scored else ""
    return (
        f"<table><thead><tr><th>Found</th>{score}<th class='number'>Area</th><th class='number'>Pixels</th></tr>"
        f"</thead><tbody>{rows}</tbody></table>"
    )


def problems_html(problems: list[str]) -> str:
    """A box of one line per problem; nothing if there is none."""
    lines = "".join(f"<p>{escape(problem)}</p>" for problem in problems)
    return f"<div class='problems' role='alert'>{lines}</div>" if problems else ""


# ---- what the page does ---------------------------------------------------------------------------------------------


def shown_names(models: list[str]) -> dict[str, str]:
    """What the page calls each model -> the model: folders go without the path to them, which is nobody's business."""
    names: dict[str, str] = {}
    for model in models:
        name = Path(model).name if Path(model).is_dir() else model
        numbered = (f"{name} ({number})" for number in count(2))
        names[name if name not in names else next(other for other in numbered if other not in names)] = model
    return names


NAMES = shown_names(MODELS)


def checked_model(name: str | None) -> LoadedModel:
    """The model that the page calls so.

    Raises:
        Problem: none is named, it cannot be loaded, or visitors may not choose it.
    """
    name = name.strip() if isinstance(name, str) else ""
    if not name:
        raise Problem("No model: give a name on the Hub, as user/model, or the folder of an exported model.")
    if not ANY_MODEL and name not in NAMES:
        other = "Copy it to your account to use" if ON_THE_HUB else "Name another when you start it, such as"
        raise Problem(f"This Space offers {', '.join(NAMES)}. {other} {name}.")
    model = NAMES.get(name, name)
    try:
        return load_model(model)
    except Problem as problem:
        raise Problem(str(problem).replace(model, name)) from problem


def describe_model(name: str | None) -> tuple[Any, Any, str]:
    """Tasks of the model, whether they take a threshold, and what is wrong with the model."""
    try:
        loaded = checked_model(name)
    except Problem as problem:
        return gr.skip(), gr.skip(), problems_html([str(problem)])
    tasks = loaded.tasks
    return gr.Radio(choices=tasks, value=tasks[0]), threshold_for(tasks[0]), ""


def threshold_for(task: str) -> gr.Slider:
    """The threshold at the task's own value; hidden where there is none."""
    if task not in THRESHOLDS:
        return gr.Slider(visible=False)
    return gr.Slider(visible=True, value=THRESHOLDS[task])


def stems(paths: list[Path]) -> list[str]:
    """A distinct name per image: its stem, numbered where stems collide."""
    names: dict[str, None] = {}
    for path in paths:
        numbered = (f"{path.stem}_{number}" for number in count(2))
        names[path.stem if path.stem not in names else next(name for name in numbered if name not in names)] = None
    return list(names)


def checked_sizes(tile: float | None, shortest_edge: float | None) -> tuple[int, int]:
    """Whole numbers of pixels; an empty field is 0.

    Raises:
        Problem: a negative number, or an edge of more pixels than are taken.
    """
    sizes = {"tile": int(tile or 0), "shortest edge": int(shortest_edge or 0)}
    for name, value in sizes.items():
        if value < 0 or value**2 > MAX_PIXELS:
            raise Problem(f"The {name} is {value}: give 0 to {int(MAX_PIXELS**0.5)} pixels.")
    return sizes["tile"], sizes["shortest edge"]


def segment_images(
    files: list[str] | None,
    model: str | None,
    task: str,
    threshold: float,
    tile: float | None = 0,
    shortest_edge: float | None = 0,
    progress: Any = None,
) -> tuple[list[tuple[str, Result]], list[str]]:
    """Names and results of the images that could be segmented, and what is wrong with the others."""
    paths = [Path(file) for file in files or []]
    if not paths:
        return [], ["No image: upload one or choose an example."]
    problems = []
    if len(paths) > MAX_IMAGES:
        problems.append(f"{len(paths)} images, but {MAX_IMAGES} are taken at once: the rest was left out.")
    jobs = list(zip(stems(paths), paths, strict=True))[:MAX_IMAGES]
    try:
        loaded, sizes = checked_model(model), checked_sizes(tile, shortest_edge)
    except Problem as problem:
        return [], [str(problem)]
    results = []
    for name, path in jobs if progress is None else progress.tqdm(jobs, desc="Segmenting", unit="images"):
        try:
            results.append((name, segment(loaded, read_image(path, MAX_PIXELS), task, threshold, *sizes)))
        except Problem as problem:
            problems.append(str(problem))
        except Exception as error:  # shown in a line here, in full in the Space's log
            logging.exception("%s could not be segmented", path.name)
            problems.append(f"{path.name} could not be segmented: {type(error).__name__}. The log says more.")
    return results, problems


def write_files(results: list[tuple[str, Result]], folder: Path) -> list[str]:
    """The label maps and, last, one archive of everything."""
    written = [result.write(folder, name) for name, result in results]
    archive = folder / "everything.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        for file in (file for files in written for file in files):
            stream.write(file, file.name)
    return [str(files[0]) for files in written] + [str(archive)]


def show(
    files: list[str] | None,
    model: str | None,
    task: str,
    threshold: float,
    tile: float | None,
    shortest_edge: float | None,
    progress: Any = gr.Progress(),  # noqa: B008
) -> Iterator[tuple[Any, ...]]:
    """Values of `problems`, `view`, `pages`, `thumbnails`, `opacity` and `downloads`."""
    results, problems = segment_images(files, model, task, threshold, tile, shortest_edge, progress)
    pages = [finding_html(result, name) for name, result in results]
    thumbnails = []
    for name, result in results:
        thumbnail = result.image.copy()
        thumbnail.thumbnail((256, 256))
        thumbnails.append((thumbnail, name))
    with tempfile.TemporaryDirectory() as folder:
        downloads = write_files(results, Path(folder)) if results else None
        # As a generator, for Gradio copies the files after this and before it goes on.
        yield (
            problems_html(problems),
            pages[0] if pages else PLACEHOLDER,
            pages,
            gr.Gallery(thumbnails, visible=len(pages) > 1, selected_index=0 if pages else None),
            gr.Slider(visible=bool(pages)),
            gr.File(downloads, visible=bool(downloads)),
        )


def show_page(pages: list[str], chosen: gr.SelectData) -> str:
    """The page of the thumbnail that was clicked."""
    return pages[chosen.index]


def choose_example(chosen: gr.SelectData) -> list[str]:
    """The example that was clicked, as the uploaded image."""
    return [EXAMPLES[chosen.index]]


def strip(value: list[str], elem_id: str, visible: bool = True) -> gr.Gallery:
    """Small images to choose one of."""
    return gr.Gallery(
        value,
        elem_id=elem_id,
        elem_classes="strip",
        show_label=False,
        buttons=[],
        object_fit="cover",
        height="auto",
        allow_preview=False,
        visible=visible,
    )


def build_page() -> gr.Blocks:
    """The page with its events."""
    with gr.Blocks(title="FASeg segmentation", delete_cache=(3600, 3600), fill_width=True) as page:
        gr.Markdown("# FASeg segmentation\nWhat every pixel of an image belongs to.")
        pages = gr.State([])
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=320):
                upload = gr.File(
                    label="Images", file_count="multiple", file_types=["image"], height=190, elem_id="upload"
                )
                gr.Markdown("or an example")
                examples = strip(EXAMPLES, "examples")
                model = gr.Dropdown(
                    list(NAMES),
                    value=next(iter(NAMES)),
                    label="Model",
                    info="A name on the Hub, or a folder" if ANY_MODEL else None,
                    allow_custom_value=ANY_MODEL,
                    elem_id="model",
                )
                task = gr.Radio(["semantic"], value="semantic", label="Task", elem_id="task")
                threshold = gr.Slider(
                    0, 1, 0.5, step=0.05, label="Threshold", info="Least score of a segment", visible=False
                )
                with gr.Row():
                    tile = gr.Number(
                        0,
                        label="Tile",
                        info="Side in pixels, for large images; 0: read whole",
                        precision=0,
                        minimum=0,
                        min_width=120,
                        elem_id="tile",
                    )
                    edge = gr.Number(
                        0,
                        label="Shortest edge",
                        info="Pixels it is read at; 0: the model's",
                        precision=0,
                        minimum=0,
                        min_width=120,
                        elem_id="edge",
                    )
                run = gr.Button("Segment", variant="primary", elem_id="run")
            with gr.Column(scale=3, min_width=480):
                problems = gr.HTML(elem_id="problems")
                view = gr.HTML(PLACEHOLDER, elem_id="view")
                thumbnails = strip([], "thumbnails", visible=False)
                opacity = gr.Slider(
                    0, 1, DEFAULT_OPACITY, step=0.05, label="Opacity of the overlay", visible=False, elem_id="opacity"
                )
                downloads = gr.File(
                    label="Label maps (pixel value = class id)", interactive=False, visible=False, elem_id="downloads"
                )

        shown = [problems, view, pages, thumbnails, opacity, downloads]
        asked = {"inputs": [upload, model, task, threshold, tile, edge], "outputs": shown, "show_progress_on": view}
        about = {"inputs": model, "outputs": [task, threshold, problems], "show_progress_on": task}
        # One at a time, so that a model is loaded once.
        page.load(describe_model, **about, concurrency_id="model")
        model.change(describe_model, **about, concurrency_id="model")
        task.change(threshold_for, task, threshold)
        opacity.change(None, opacity, js=SET_OPACITY)
        run.click(show, **asked, concurrency_id="model")
        examples.select(choose_example, None, upload).then(show, **asked, concurrency_id="model")
        thumbnails.select(show_page, pages, view)
    return page


class LoopbackOnly:
    """Refuses what another site asks for, through the visitor's browser, of a page on the visitor's machine.

    A request comes from the page itself if it names the machine as its host, and no other origin than that host.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            own = host.partition(":")[0] in LOOPBACK and origin in (None, f"http://{host}")
            if not own:
                text = f"This page answers {' and '.join(LOOPBACK)} only, and nothing that another site asks for.\n"
                await PlainTextResponse(text, status_code=403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


if __name__ == "__main__":
    build_page().launch(
        theme=THEME,
        css=CSS,
        max_file_size="100mb",
        show_error=True,  # else a wrong value is answered by an error without a word
        ssr_mode=False,
        footer_links=[],
        app_kwargs={"middleware": [Middleware(LoopbackOnly)] if LOOPBACK_ONLY else []},
    )
