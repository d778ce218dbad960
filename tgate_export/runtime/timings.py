"""Where a run's time went, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepTiming:
    """One denoiser evaluation and the sampler's step after it."""

    phase: str
    denoiser: float
    sampler: float


@dataclass(frozen=True)
class Timings:
    """One call: seconds of each stage, and of every evaluation.

    Attributes:
        text_encoder: both prompts.
        steps: one entry for each denoiser evaluation.
        vae_decoder: latents to images; 0 for latent output.
        total: tokenizing to images on the host; without loading engines.
        vae_encoder: image to latents; 0 without one.
    """

    text_encoder: float
    steps: tuple[StepTiming, ...]
    vae_decoder: float
    total: float
    vae_encoder: float = 0.0

    @property
    def outside_engines(self) -> float:
        """Seconds that neither the denoiser, the text encoder nor the VAE ran: sampler included."""
        denoiser = sum(step.denoiser for step in self.steps)
        vae = self.vae_encoder + self.vae_decoder
        return self.total - denoiser - self.text_encoder - vae

    def __add__(self, other: Timings) -> Timings:
        return Timings(
            self.text_encoder + other.text_encoder,
            self.steps + other.steps,
            self.vae_decoder + other.vae_decoder,
            self.total + other.total,
            self.vae_encoder + other.vae_encoder,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON of numbers."""
        phases = {}
        for phase in dict.fromkeys(step.phase for step in self.steps):
            seconds = [step.denoiser for step in self.steps if step.phase == phase]
            phases[phase] = {"evaluations": len(seconds), "seconds": sum(seconds)}
        return {
            "total_s": self.total,
            "text_encoder_s": self.text_encoder,
            "vae_encoder_s": self.vae_encoder,
            "vae_decoder_s": self.vae_decoder,
            "sampler_s": sum(step.sampler for step in self.steps),
            "outside_engines_s": self.outside_engines,
            "outside_engines_fraction": self.outside_engines / self.total if self.total else 0.0,
            "phases": phases,
            "steps": [
                {"phase": step.phase, "denoiser_s": step.denoiser, "sampler_s": step.sampler}
                for step in self.steps
            ],
        }
