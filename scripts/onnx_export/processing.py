"""What the processor does, as ONNX graphs around the network: image in, label map out.

The resize is ONNX's antialiased one, which follows Pillow's on 8 bits.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import compose, parser

from image_processing.semantic_labels import LOGITS_STRIDE
from scripts.cli.errors import UserError
from scripts.data.bands import ImageForm, form_of
from scripts.onnx_export.kinds import CLASSES, LOGITS, MASKS, Kind
from scripts.onnx_export.network import INPUT


MODES = {2: "linear", 3: "cubic"}  # by the number of Pillow's filter

# `wanted`: height and width that the processor's size rule asks for, float64.
BY_EDGES = """
    shorter = ReduceMin(sides)
    enlargement = Div(shortest_edge, shorter)
    enlarged = Mul(sides, enlargement)
    is_shorter = Equal(sides, shorter)
    by_shortest = Where(is_shorter, shortest_edge, enlarged)
    longer = ReduceMax(by_shortest)
    room = Div(longest_edge, longer)
    reduction = Min(one, room)
    wanted = Mul(by_shortest, reduction)
"""
PREPARE = """
prepare ({image_type}[image_height, image_width, {bands}] image)
    => (float[1, {bands}, height, width] {input}, int64[2] network_size, int64[2] image_size)
<{constants}>
{{
    image_size = Shape <start = 0, end = 2> (image)
    sides = Cast <to = 11> (image_size)
    {size_rule}
    pad_room = Div(pad_size, wanted)
    least_room = ReduceMin(pad_room)
    shrinking = Min(one, least_room)
    fitting = Mul(wanted, shrinking)
    half_up = Add(fitting, half)
    whole = Floor(half_up)
    positive = Max(one, whole)
    network_size = Cast <to = 7> (positive)
    channels_first = Transpose <perm = [2, 0, 1]> (image)
    stored = Unsqueeze(channels_first, first_axis)
    {scale}
    planes_size = Concat <axis = 0> (one_image, network_size)
    resized = Resize <mode = "{mode}", antialias = 1, exclude_outside = 1, cubic_coeff_a = -0.5,
        coordinate_transformation_mode = "half_pixel"> (planes, , , planes_size)
    {values}
    centred = Sub(values, mean)
    normal = Div(centred, deviation)
    {canvas}
    lacking = Sub(canvas, network_size)
    borders = Concat <axis = 0> (no_borders, lacking)
    {input} = Pad(normal, borders)
}}
"""
EIGHT_BITS = {"scale": "planes = Identity(stored)", "values": "values = Cast <to = 1> (resized)"}
# As `scaled_intensities` does it: an image that comes out whole is one of 8 bits, which a resize rounds.
IN_RANGE = {
    "scale": """
    doubles = Cast <to = 11> (stored)
    from_low = Sub(doubles, low)
    widened = Mul(from_low, most)
    spread = Div(widened, width_of_range)
    within = Clip(spread, none, most)
    planes = Cast <to = 1> (within)
    floors = Floor(within)
    fractions = Sub(within, floors)
    largest_fraction = ReduceMax <keepdims = 0> (fractions)
    is_whole = Equal(largest_fraction, none)
""",
    "values": """
    rounded = Round(resized)
    in_eight_bits = Clip(rounded, none_float, most_float)
    values = Where(is_whole, in_eight_bits, resized)
""",
}
FIXED_CANVAS = "canvas = Cast <to = 7> (pad_size)"
NEXT_MULTIPLE = """
    beyond = Add(network_size, divisor_less_one)
    steps = Div(beyond, divisor)
    canvas = Mul(steps, divisor)
"""
FINISH = """
finish ({outputs}, int64[2] network_size, int64[2] image_size)
    => ({label_type}[image_height, image_width] labels)
<int64[2] stride = {{{stride}, {stride}}}, int64[1] from_start = {{0}}, int64[1] but_last = {{-1}},
 int64[1] class_axis = {{2}}, int64[2] corner = {{0, 0}}, int64[2] plane_axes = {{2, 3}},
 int64[1] image_axis = {{0}}, int64[3] pixels_flat = {{0, 0, -1}}>
{{
    planes = Shape <start = 0, end = 2> ({maps})
    logits_size = Shape <start = 2, end = 4> ({maps})
    canvas = Mul(logits_size, stride)
    canvas_size = Concat <axis = 0> (planes, canvas)
    on_canvas = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> ({maps}, , , canvas_size)
    cut = Slice(on_canvas, corner, network_size, plane_axes)
    {scores}
    best = ArgMax <axis = 1, keepdims = 0> (scores)
    map = Squeeze(best, image_axis)
    labels = Cast <to = {label_number}> (map)
}}
"""
CLASS_PROBS = """
    probs = Softmax <axis = -1> ({classes})
    class_probs = Slice(probs, from_start, but_last, class_axis)
    probs_by_class = Transpose <perm = [0, 2, 1]> (class_probs)
"""
RESIZE = """
    {name}_channels = Shape <start = 0, end = 2> ({source})
    {name}_size = Concat <axis = 0> ({name}_channels, image_size)
    {name} = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> ({source}, , , {name}_size)
"""
SUM = """
    mask_probs = Sigmoid({source})
    flat_probs = Reshape(mask_probs, pixels_flat)
    flat_scores = MatMul(probs_by_class, flat_probs)
    all_classes = Shape <start = 0, end = 2> (flat_scores)
    plane = Shape <start = 2, end = 4> ({source})
    {name}_shape = Concat <axis = 0> (all_classes, plane)
    {name} = Reshape(flat_scores, {name}_shape)
"""


def with_processing(network: onnx.ModelProto, kind: Kind, processor: Any) -> onnx.ModelProto:
    """`network` between the processor's resize, normalisation and padding, and its semantic post-processing.

    Returns:
        a graph of `image` `(H, W, C)`, uint8 or, of a range of intensities, float32, to `labels` `(H, W)`, uint8 where
        that suffices and int32 otherwise.
    Raises:
        UserError: a setting of the processor that the graph cannot follow.
    """
    prepare = prepare_graph(processor, form_of(kind.config, processor))
    model = compose.merge_models(as_model(prepare, network), network, [(INPUT, INPUT)])
    outputs = [output.name for output in kind.outputs]
    finish = as_model(finish_graph(outputs, kind.config.num_labels), network)
    names = [*outputs, "network_size", "image_size"]
    return compose.merge_models(model, finish, [(name, name) for name in names])


def as_model(text: str, like: onnx.ModelProto) -> onnx.ModelProto:
    """A graph in ONNX's text format as a model of the versions of `like`; names inside it start with its own."""
    version = next(opset.version for opset in like.opset_import if not opset.domain)
    model = parser.parse_model(f'<ir_version: {like.ir_version}, opset_import: ["" : {version}]>\n{text}')
    graph = model.graph
    outside = {value.name for value in (*graph.input, *graph.output)}
    inside = {name for node in graph.node for name in (*node.input, *node.output)} - outside - {""}
    renamed = {name: f"{graph.name}/{name}" for name in inside}
    for number, node in enumerate(graph.node):
        node.name = f"{graph.name}/{number}"
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    used = {name for node in graph.node for name in node.input}
    constants = [constant for constant in graph.initializer if renamed.get(constant.name, constant.name) in used]
    del graph.initializer[:]  # onnxruntime warns of those that a rule has no use for
    graph.initializer.extend(constants)
    for constant in graph.initializer:
        constant.name = renamed.get(constant.name, constant.name)
    return model


def prepare_graph(processor: Any, form: ImageForm) -> str:
    """The processor's way from an image to `pixel_values`, in ONNX's text format."""
    if processor.resample not in MODES:
        raise UserError(f"--with_processing: the processor has resample={processor.resample}: choose 2, bilinear")
    size, pad_size = processor.size, processor.pad_size
    doubles = {"one": [1.0], "half": [0.5], "pad_size": [float("inf")] * 2}
    divisor = processor.size_divisor if processor.do_pad else 0
    if pad_size:
        doubles["pad_size"] = [float(pad_size["height"]), float(pad_size["width"])]
    if not processor.do_resize:
        rule = "wanted = Identity(sides)"
    elif size["shortest_edge"]:
        rule = BY_EDGES
        doubles["shortest_edge"] = [float(size["shortest_edge"])]
        doubles["longest_edge"] = [float(size["longest_edge"] or "inf")]
    elif size["height"] and size["width"]:
        rule = "wanted = Identity(fixed_size)"
        doubles["fixed_size"] = [float(size["height"]), float(size["width"])]
    else:
        raise UserError(f"--with_processing: the processor has size {dict(size)}: set shortest_edge, or height, width")
    integers = {"first_axis": [0], "one_image": [1, form.num_bands], "no_borders": [0] * 6, "divisor": [divisor or 1]}
    integers["divisor_less_one"] = [(divisor or 1) - 1]
    canvas = FIXED_CANVAS if pad_size else NEXT_MULTIPLE
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, deviation = (
        list(given) if isinstance(given, list | tuple) else [given] * form.num_bands
        for given in ((processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0))
    )
    constants = [f"double[{len(values)}] {name} = {braced(values)}" for name, values in doubles.items()]
    constants += [f"int64[{len(values)}] {name} = {braced(values)}" for name, values in integers.items()]
    shape = f"float[1, {form.num_bands}, 1, 1]"
    constants.append(f"{shape} mean = {braced([value / factor for value in mean])}")
    constants.append(f"{shape} deviation = {braced([value / factor for value in deviation])}")
    if form.intensity_range is not None:
        low, high = form.intensity_range
        scalars = {"low": low, "width_of_range": high - low, "none": 0, "most": 255}
        constants += [f"double {name} = {braced([float(value)])}" for name, value in scalars.items()]
        constants += ["float none_float = {0}", "float most_float = {255}"]
    return PREPARE.format(
        input=INPUT,
        constants=",\n ".join(constants),
        size_rule=rule,
        mode=MODES[processor.resample],
        canvas=canvas,
        bands=form.num_bands,
        image_type="uint8" if form.intensity_range is None else "float",
        **(EIGHT_BITS if form.intensity_range is None else IN_RANGE),
    )


def finish_graph(outputs: list[str], num_labels: int) -> str:
    """`post_process_semantic_segmentation` from logits to a label map of the image's size, in ONNX's text format."""
    shapes = {CLASSES: "float[1, Q, L]", MASKS: "float[1, Q, h, w]", LOGITS: "float[1, K, h, w]"}
    if MASKS not in outputs:
        steps = RESIZE.format(name="scores", source="cut")
    else:
        steps = SUM.format(name="small_scores", source="cut") + RESIZE.format(name="scores", source="small_scores")
    if CLASSES in outputs:
        steps = CLASS_PROBS.format(classes=CLASSES) + steps
    name, number = ("uint8", onnx.TensorProto.UINT8) if num_labels <= 256 else ("int32", onnx.TensorProto.INT32)
    return FINISH.format(
        outputs=", ".join(f"{shapes[output]} {output}" for output in outputs),
        maps=outputs[-1],
        stride=LOGITS_STRIDE,
        scores=steps,
        label_type=name,
        label_number=number,
    )


def braced(values: list[Any]) -> str:
    """`{1, 2}`; infinity, which the format lacks, as a number that no image reaches."""
    return "{" + ", ".join(repr(min(value, 1e9)) for value in values) + "}"
