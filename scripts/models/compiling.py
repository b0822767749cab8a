"""The flags that make many images faster: a compiled network, and images padded to few sizes for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scripts.cli.errors import UserError
from scripts.cli.parser import flag


LARGEST = 4096  # of --size_divisor; inputs of more pixels than that squared a model may refuse


@dataclass
class CompileArguments:
    """Compilation of the network in the commands that use a trained one."""

    torch_compile: bool = flag(
        False,
        "Compile the network by torch.compile, for each of the first 8 sizes of images: a minute or more for each at "
        "first, then faster. On a GPU it runs as a CUDA graph.",
    )
    size_divisor: int | None = flag(
        None,
        "Pad the model's input to multiples of so many pixels, such as 256, so that images of many sizes become "
        "inputs of few for --torch_compile; by default the model's own, mostly 32. More padding changes labels a "
        "little.",
    )


def compile_network(arguments: CompileArguments, model: Any, *processors: Any) -> None:
    """Does what the flags ask for.

    Raises:
        UserError: the divisor is none of the model's, or the model's images are not padded by one.
    """
    if (divisor := arguments.size_divisor) is not None:
        for processor in processors:
            least = processor.size_divisor or 1
            if not 1 <= divisor <= LARGEST or divisor % least:
                raise UserError(
                    f"--size_divisor {divisor}: give a multiple of the model's own, {least}, up to {LARGEST}"
                )
            if not processor.do_pad or dict(processor.pad_size or {}).get("height"):
                settings = f"do_pad={processor.do_pad}, pad_size={processor.pad_size}"
                raise UserError(f"--size_divisor {divisor}: preprocessor_config.json has {settings}: leave it out")
            processor.size_divisor = divisor
    if arguments.torch_compile:
        model.compile_for_inference()
