"""Golden cases of the schedules, the guidance, and whole sampling runs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from acestep.conditioning import condition_rows
from acestep.models.transformer import Condition
from acestep.request import GenerationRequest
from acestep.sampling import guidance, tasks
from acestep.sampling.denoise import denoise
from acestep.sampling.edit import flow_edit
from acestep.sampling.noise import BatchNoise
from acestep.sampling.schedule import flow_sigmas
from acestep.sampling.steppers import EulerStepper, Granularity, HeunStepper, PingPongStepper, Stepper
from tests.golden import Comparison, Golden, case
from tests.golden_cases.networks import tiny_transformer

OMEGA = torch.tensor([10.0])


@case("schedulers")
def schedulers(golden: Golden) -> Iterator[Comparison]:
    generator = torch.Generator().manual_seed(1234)
    start = golden["trajectory.x0"]

    def draw() -> torch.Tensor:
        return torch.randn(start.shape, generator=generator)

    def make(kind: str, sigmas: torch.Tensor) -> Stepper:
        if kind == "pingpong":
            return PingPongStepper(sigmas, draw)
        return {"euler": EulerStepper, "heun": HeunStepper}[kind](sigmas, Granularity(OMEGA))

    for name, want in golden.tensors.items():
        if name.endswith(".timesteps"):
            kind, steps, sigma_max = name.removesuffix(".timesteps").split(".", 2)
            sigmas = flow_sigmas(int(steps), float(sigma_max))
            yield name, torch.tensor(make(kind, sigmas).timesteps), want
            if kind != "heun":  # its sigmas are the same values, repeated
                yield name.replace("timesteps", "sigmas"), sigmas, golden[name.replace("timesteps", "sigmas")]
    for kind in ("euler", "heun", "pingpong"):
        stepper, x = make(kind, flow_sigmas(8)), start
        for index, timestep in enumerate(stepper.timesteps):
            x = stepper.step(index, x, torch.sin(3 * x) + 0.5 * x * timestep / 1000 - 0.2)
            yield f"{kind}.trajectory.{index}", x, golden[f"{kind}.trajectory.{index}"]


@case("guidance")
def guidance_kinds(golden: Golden) -> Iterator[Comparison]:
    def scale(value: float) -> torch.Tensor:
        return torch.full((2,), value)

    guide = guidance.make_guidance("apg")
    for index in range(3):
        cond, uncond = golden[f"cond.{index}"], golden[f"uncond.{index}"]
        yield f"apg.{index}", guide(cond, uncond, scale(15), index), golden[f"apg.{index}"]
        yield f"cfg.{index}", guidance.cfg(cond, uncond, scale(7)), golden[f"cfg.{index}"]
        star = guidance.cfg_star(cond, uncond, scale(7), zero=index <= 0)
        yield f"cfg_star.{index}", star, golden[f"cfg_star.{index}"]
        double = guidance.double_condition(cond, golden[f"text_only.{index}"], uncond, scale(5), scale(1.5))
        yield f"double.{index}", double, golden[f"double.{index}"]


@case("diffusion_", prefix=True)
def diffusion(golden: Golden) -> Iterator[Comparison]:
    settings = golden.case
    names = {"scheduler": "scheduler_type", "guidance": "cfg_type", "num_inference_steps": "infer_steps"}
    same = ("duration", "guidance_scale", "omega_scale", "guidance_interval", "guidance_interval_decay")
    same += ("min_guidance_scale", "use_erg_lyric", "use_erg_diffusion", "oss_steps")
    same += tuple(name for name in ("guidance_scale_text", "guidance_scale_lyric") if name in settings)
    values = {ours: settings[theirs] for ours, theirs in names.items()} | {name: settings[name] for name in same}
    request = GenerationRequest(prompt="golden", seed=settings["seeds"][0], **values)
    transformer = tiny_transformer()
    condition = condition_rows(
        transformer,
        [request],
        *(golden[name] for name in ("text", "text_mask", "lyric_ids", "lyric_mask")),
        weakened_text=golden.tensors.get("text_null"),
    )
    yield "output", denoise(transformer, condition, [request], *start_of(golden)), golden["output"]


def start_of(golden: Golden) -> tuple[BatchNoise, None, tasks.Start | None]:
    """The noise and the start that a case's task asks for."""
    settings, tensors = golden.case, golden.tensors
    known = next((tensors[name] for name in ("src_latents", "ref_latents") if name in tensors), golden["output"])
    noise, others = (BatchNoise(settings[name], [known.shape[-1]]) for name in ("seeds", "retake_seeds"))
    steps, variance = settings["infer_steps"], settings.get("retake_variance", 0.0)
    if settings.get("audio2audio_enable"):
        return noise, None, tasks.from_reference(known, noise.draw(), steps, settings["ref_audio_strength"])
    if not settings.get("add_retake_noise"):
        return noise, None, None
    mine, other = noise.draw(), others.draw()
    if "src_latents" not in tensors:
        return noise, None, tasks.from_noise(tasks.mix_noise(mine, other, variance), steps)
    begin, end = (int(settings[name] * 44100 / 512 / 8) for name in ("repaint_start", "repaint_end"))
    left, right = max(0, -begin), max(0, end - known.shape[-1])
    if left or right:
        return noise, None, tasks.extend(known, mine, other, left, right, steps, variance)
    return noise, None, tasks.repaint(known, mine, other, range(begin, end), steps, variance)


@case("edit_", prefix=True)
def edit(golden: Golden) -> Iterator[Comparison]:
    settings, transformer = golden.case, tiny_transformer()
    request = GenerationRequest(
        prompt="golden", guidance_scale=settings["guidance_scale"], use_erg_lyric=False, use_erg_tag=False
    )

    def condition(prefix: str) -> Condition:
        names = (f"{prefix}{name}" for name in ("text", "text_mask", "lyric_ids", "lyric_mask"))
        return condition_rows(transformer, [request], *(golden[name] for name in names), twins_have_lyrics=False)

    source = golden["src_latents"]
    edited = flow_edit(
        transformer,
        condition(""),
        condition("target_"),
        source,
        BatchNoise(settings["retake_seeds"], [source.shape[-1]]).draw,
        num_inference_steps=settings["infer_steps"],
        guidance_scale=settings["guidance_scale"],
        **{name: settings[name] for name in ("n_min", "n_max", "n_avg")},
    )
    yield "output", edited, golden["output"]
