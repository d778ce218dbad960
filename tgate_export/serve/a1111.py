"""A1111's API: `/sdapi/v1/txt2img`, `img2img`, `progress`, and what its clients ask at start.

Fields, answers and errors are those of AUTOMATIC1111's web UI
(https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API). Beside its fields stand the
bundle's parameters. Requests run together, so several may be under way.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tgate_export.common.memory import resident_bytes
from tgate_export.runtime.request import make_request
from tgate_export.serve import fields
from tgate_export.serve.a1111_fields import INERT_SETTINGS, Call, Kind, Settings, parse
from tgate_export.serve.a1111_hires import LATENT_UPSCALERS, PIXEL_UPSCALERS
from tgate_export.serve.a1111_info import info
from tgate_export.serve.a1111_progress import Running, progress_of
from tgate_export.serve.a1111_samplers import AUTOMATIC, a1111_samplers
from tgate_export.serve.generation import files, in_encoder, note, submitted, unless_gone
from tgate_export.serve.options import ServeOptions
from tgate_export.serve.pool import ModelPool

_TRUE = ("1", "true", "yes", "on")
# What is always the same, most of it because there is nothing of it here; or nothing to do for.
_CONSTANT: dict[str, Any] = {
    "scripts": {"txt2img": [], "img2img": []}, "script-info": [], "extensions": [],
    "upscalers": PIXEL_UPSCALERS, "latent-upscale-modes": LATENT_UPSCALERS,
    "realesrgan-models": [], "face-restorers": [],
    "sd-vae": [], "hypernetworks": [], "loras": [], "embeddings": {"loaded": {}, "skipped": {}},
    "prompt-styles": [], "cmd-flags": {"api": True},
}  # fmt: skip
_DONE = ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings")


class A1111Routes:
    """The routes, over a pool of models."""

    def __init__(self, pool: ModelPool, options: ServeOptions) -> None:
        self._pool = pool
        self._options = options
        self._settings = Settings()
        self._running: list[Running] = []  # the oldest first

    def routes(self) -> list[Route]:
        """Return them for Starlette."""
        get: dict[str, Callable[[Request], Any]] = {
            "progress": self.progress, "samplers": self.samplers, "schedulers": self.schedulers,
            "sd-models": self.models, "memory": _memory,
            **{name: _constant(value) for name, value in _CONSTANT.items()},
        }  # fmt: skip
        post: dict[str, Callable[[Request], Any]] = {
            "txt2img": self.txt2img, "img2img": self.img2img, "interrupt": self.interrupt,
            "skip": self.skip, **{name: _constant(None) for name in _DONE},
        }  # fmt: skip
        return [
            *(Route(f"/sdapi/v1/{name}", route) for name, route in get.items()),
            *(Route(f"/sdapi/v1/{name}", route, methods=["POST"]) for name, route in post.items()),
            Route("/sdapi/v1/options", self.settings),
            Route("/sdapi/v1/options", self.set_settings, methods=["POST"]),
        ]

    async def txt2img(self, request: Request) -> Response:
        """Generate images from a prompt."""
        return await self._generate(request, "txt2img")

    async def img2img(self, request: Request) -> Response:
        """Generate images that begin with one; for bundles built with image-to-image."""
        return await self._generate(request, "img2img")

    async def _generate(self, request: Request, kind: Kind) -> Response:
        body = await request.body()
        call = await in_encoder(parse, kind, body, self._pool, self._options, self._settings)
        return await unless_gone(request, self._whole(request, call))

    async def _whole(self, request: Request, call: Call) -> Response:
        running, model = Running(call), call.wanted.model
        self._running.append(running)
        try:
            async with submitted(self._pool, call.wanted, running.tell) as future:
                running.begin(future)
                await asyncio.wait({future})
                output = None if future.cancelled() else future.result()
            if output is None:  # interrupted: what there is, as A1111 does
                images = await in_encoder(running.previews) if call.send_images else []
                made = await in_encoder(
                    lambda: make_request(model.manifest, **call.wanted.arguments)
                )
                ours: dict[str, Any] = {"interrupted": True}
            else:
                note(request, call.wanted, output)
                for index, latents in running.finished.items():
                    await in_encoder(model.preview.learn, latents, output.images[index])
                contents = await files(call.wanted, output) if call.send_images else []
                images = [base64.b64encode(content).decode() for content in contents]
                made = output.request
                ours = {"warnings": output.warnings, "timings": output.timings()}
        finally:
            self._running.remove(running)
        text = info(call, made, running.timestamp, ours)
        return JSONResponse({"images": images, "parameters": call.fields, "info": text})

    async def progress(self, request: Request) -> Response:
        """Say how far the oldest request is."""
        running = self._running[0] if self._running else None
        preview = None
        if running and request.query_params.get("skip_current_image", "").lower() not in _TRUE:
            preview = await in_encoder(running.preview)
        return JSONResponse(progress_of(running, preview))

    async def interrupt(self, request: Request) -> Response:
        """End the requests that are under way; each is answered with what there is."""
        del request
        for running in self._running:
            running.interrupt()
        return JSONResponse({})

    async def skip(self, request: Request) -> Response:
        """End the requests that are under way: all images of one run together."""
        del request
        for running in self._running:
            running.interrupt(skip=True)
        return JSONResponse(None)

    async def samplers(self, request: Request) -> Response:
        """List the samplers of the model that is set, the default one first."""
        del request
        found: list[dict[str, Any]] = []
        manifest = self._pool.find(self._settings.model).manifest
        default = manifest.defaults.scheduler
        for name, types in a1111_samplers(manifest).items():
            entry = {"name": name, "aliases": list(types.values()), "options": {}}
            found.insert(0 if default in types.values() else len(found), entry)
        return JSONResponse(found)

    async def schedulers(self, request: Request) -> Response:
        """List the schedule types of the model that is set."""
        del request
        known = a1111_samplers(self._pool.find(self._settings.model).manifest)
        types = dict.fromkeys([AUTOMATIC, *(each for types in known.values() for each in types)])
        return JSONResponse(
            [
                {
                    "name": type_.lower(), "label": type_, "aliases": None, "default_rho": -1,
                    "need_inner_model": False,
                }
                for type_ in types
            ]
        )  # fmt: skip

    async def models(self, request: Request) -> Response:
        """List the models."""
        del request
        return JSONResponse(
            [
                {
                    "title": name, "model_name": name, "hash": None, "sha256": None,
                    "filename": name, "config": None,
                }
                for name in self._pool.models
            ]
        )  # fmt: skip

    async def settings(self, request: Request) -> Response:
        """Show the settings that mean something here."""
        del request
        return JSONResponse(
            {
                "samples_format": "png",
                **{name: values[0] for name, values in INERT_SETTINGS.items()},
                "sd_model_checkpoint": self._pool.find(self._settings.model).name,
                "CLIP_stop_at_last_layers": 1 + (self._settings.clip_skip or 0),
            }
        )

    async def set_settings(self, request: Request) -> Response:
        """Set the model, which is loaded, and the layers that are skipped."""
        found = fields.parse_json(await request.body())
        changed = self._settings.changed(found, self._pool)
        if changed.model != self._settings.model:
            async with self._pool.lend(self._pool.find(changed.model)):
                pass
        self._settings = changed
        return JSONResponse(None)


def _constant(value: Any) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        del request
        return JSONResponse(value)

    return answer


async def _memory(request: Request) -> Response:
    """Say what memory this process takes, in bytes."""
    del request
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    used = resident_bytes() or 0
    ram = {"free": total - used, "used": used, "total": total}
    return JSONResponse({"ram": ram, "cuda": {"error": "unavailable"}})
