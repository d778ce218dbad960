"""`tgate-export inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tgate_export.cli._console import megabytes, print_json, stdout
from tgate_export.cli._types import BundlePath

if TYPE_CHECKING:
    from rich.table import Table

    from tgate_export.bundle.manifest import Defaults
    from tgate_export.bundle.plans import PlanSet
    from tgate_export.parameters import Parameter


@click.command(name="inspect")
@click.argument("bundle", type=BundlePath())
@click.option("--json", "as_json", is_flag=True, help="The manifest as JSON.")
def command(bundle: Path, as_json: bool) -> None:
    """Show what is in a bundle, without loading it."""
    from tgate_export.bundle.integrity import open_bundle
    from tgate_export.bundle.plans import plan_sets

    manifest = open_bundle(bundle, check_hashes=False).manifest
    found = list(plan_sets(bundle))
    if as_json:
        records = {plans.name: _plans_json(plans) for plans in found}
        print_json(manifest.model_dump(mode="json") | {"plans": records})
        return
    from rich.table import Column, Table

    console = stdout()
    defaults, source = manifest.defaults, manifest.source
    total = sum(file.bytes for file in manifest.files.values())
    console.print(manifest.name, style="bold", end="")
    console.print(
        f"  {manifest.family}, {manifest.precision}, "
        f"{megabytes(total)} in {len(manifest.files)} files\n"
        f"source     {source.kind} {source.model}"
        f"{f' at {source.revision}' if source.revision else ''}\n"
        + (f"vae        {source.vae}\n" if source.vae else "")
        + "".join(f"lora       {lora.file} scale {lora.scale:g}\n" for lora in source.loras)
        + "".join(f"embedding  {part.file} as {part.token}\n" for part in source.embeddings)
        + f"size       {manifest.size.width}x{manifest.size.height} pixels, "
        f"multiples of {manifest.size.multiple}; batch {manifest.batch}\n"
        f"defaults   {defaults.num_inference_steps} steps, gate step {defaults.gate_step}, "
        f"{_self_attention(defaults)}"
        f"guidance {defaults.guidance_scale:g}, {defaults.scheduler}\n"
        f"schedulers {', '.join(manifest.samplers)} ({manifest.prediction_type})",
        soft_wrap=True,
    )
    tensors = (Column("inputs", overflow="fold"), Column("outputs", overflow="fold"))
    graphs = Table("graph", "parameters", *tensors, title="Graphs", title_justify="left")
    for name, graph in manifest.graphs.items():
        graphs.add_row(
            name,
            f"{graph.parameters / 1e6:.2f} M",
            "\n".join(_tensor(t.name, t.dtype, t.shape) for t in graph.inputs),
            "\n".join(_tensor(t.name, t.dtype, t.shape) for t in graph.outputs),
        )
    console.print(graphs)
    parameters = Table(
        "parameter", "default", Column("what it is", overflow="fold"), title="Parameters",
        title_justify="left",
    )  # fmt: skip
    for name, entry in manifest.parameters.items():
        default = "" if entry.default is None else str(entry.default)
        parameters.add_row(name, default, f"{entry.help}{_limits(entry)}")
    console.print(parameters)
    module_column = Column("module", overflow="fold")
    caches = Table("tensor", "layer", module_column, title="Attention caches", title_justify="left")
    for name, cache in manifest.caches.items():
        for index, module in enumerate(cache.layers):
            caches.add_row(name if index == 0 else "", str(index), module)
    console.print(caches)
    modules = {layer for cache in manifest.caches.values() for layer in cache.layers}
    tensors_of_layers = sum(bool(cache.layers) for cache in manifest.caches.values())
    console.print(f"{tensors_of_layers} cache tensors for {len(modules)} attention modules")
    weights = sorted({graph.weights for graph in manifest.graphs.values() if graph.weights})
    for file in weights:
        users = [name for name, graph in manifest.graphs.items() if graph.weights == file]
        console.print(
            f"{file}  {megabytes(manifest.files[file].bytes)}  used by {', '.join(users)}",
            soft_wrap=True,
        )
    for plans in found:
        key = plans.key
        console.print(f"plans/{plans.name}", style="bold", end="", soft_wrap=True)
        console.print(
            f"  {key.library} {key.version}, for SM {', '.join(key.compute_capabilities)}",
            soft_wrap=True,
        )
        console.print(_plans_table(plans))


def _plans_json(plans: PlanSet) -> dict[str, Any]:
    return {graph: plan.model_dump(mode="json") for graph, plan in plans.plans.items()}


def _plans_table(plans: PlanSet) -> Table:
    from rich.table import Column, Table

    table = Table(
        "plan", Column("size", justify="right"), "precision", Column("batch", justify="right"),
    )  # fmt: skip
    for graph, plan in plans.plans.items():
        first = next(iter(plan.key.shapes.values()))
        ends = [shape[0] for shape in (first.min, first.opt, first.max)]
        table.add_row(
            graph,
            megabytes(plan.content.bytes),
            plan.key.precision,
            str(ends[1]) if ends[0] == ends[2] else ":".join(map(str, ends)),
        )
    return table


def _self_attention(defaults: Defaults) -> str:
    """Say when self-attention is reused, if it ever is."""
    if defaults.sp_interval == defaults.fi_interval == 1:
        return ""
    return (
        f"self-attention every {defaults.sp_interval} steps (sp) after warm-up "
        f"{defaults.warm_up}, every {defaults.fi_interval} (fi) from the gate on, "
    )


def _tensor(name: str, dtype: str, shape: tuple[int | str, ...]) -> str:
    short = {"float32": "f32", "float16": "f16", "int64": "i64"}[dtype]
    return f"{name} {short} [{','.join(str(dim) for dim in shape)}]"


def _limits(entry: Parameter) -> str:
    """Return which values a parameter may have, as far as its help does not say it."""
    if entry.min is not None and entry.max is not None:
        return f" {entry.min} to {entry.max}."
    return ""
