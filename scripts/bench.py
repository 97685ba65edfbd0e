"""Everything about Motus that is a number: parameters, FLOPs, training speed, chunk latency.

    python scripts/bench.py params
    python scripts/bench.py flops --reference reference.json
    python scripts/bench.py train --size 8b --batch 8 --remat full
    python scripts/bench.py chunk --size 8b --calls 50

`params` and `flops` compute nothing: they trace the released sizes and need no accelerator. `train`
and `chunk` run on the devices at hand, with random weights born there and one random batch that
stays there, so they measure the model and not the loader; each appends a line to `bench_log.jsonl`.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import pathlib
import shlex
import sys
import time

import jax
import numpy as np
from flax import nnx

from configs import common
from motus_jax import sharding
from motus_jax.config import parse
from motus_jax.models import experts, mot, umt5, wan_vae
from motus_jax.models.params import arrays, bind, count
from motus_jax.policies import motus
from motus_jax.training import flops, optimizer, schedules, state, step

# Counts of the released networks, from the published checkpoints.
EXPECTED = {
    "wan": 4_999_787_712,
    "vlm": 2_127_532_032,
    "vlm text": 1_720_574_976,
    "vlm vision": 406_957_056,
    "action finetune": 641_527_822,
    "action pretrain": 639_409_166,
    "und": 253_493_760,
    "sum inside Motus": 8_022_341_326,
    "trainable": 5_894_809_294,
    "vae encoder": 149_627_776,
    "vae decoder": 555_049_228,
    "vae conv1": 9_312,
    "vae conv2": 2_352,
    "vae total": 704_688_668,
    "umt5": 5_680_910_336,
}
# Dense bfloat16 FLOP/s of one JAX device, by the start of its `device_kind`.
PEAK = {
    "NVIDIA H200": 989e12, "NVIDIA H100": 989e12, "NVIDIA A100": 312e12,
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,
}


def quickstart() -> dict:
    """`configs/quickstart.py`: the tiny policy with text from a small encoder."""
    tiny = common.motus_tiny()
    return {**tiny, "wan": {**tiny["wan"], "text_dim": 32}}


SIZES = {"8b": common.motus_8b, "tiny": common.motus_tiny, "quickstart": quickstart}


def policy_config(size: str, **changes) -> motus.Config:
    values = {**SIZES[size](), **changes}
    values.pop("name")
    return parse(motus.Config, values, "policy")


def optimizer_config() -> optimizer.Config:
    return optimizer.Config(
        learning_rate=5e-5, groups=common.MOTUS_GROUPS, decay=common.DECAY,
        schedule=parse(schedules.Schedule, {"type": "constant", "warmup_steps": 0}, "schedule"))


# ------------------------------------------------------------------ params


def counted() -> dict[str, int]:
    """Component -> parameters of the released sizes; only shapes are made."""
    model = nnx.eval_shape(lambda: motus.build(policy_config("8b"), nnx.Rngs(0)))
    pretrain = dataclasses.replace(model.config.action, state_dim=None, registers=0)
    inside = {name: count(getattr(model, name)) for name in ("wan", "vlm", "action", "und")}
    paths = optimizer.trainable(arrays(model), optimizer_config())
    return {
        "wan": inside["wan"],
        "vlm": inside["vlm"],
        "vlm text": count(model.vlm.language),
        "vlm vision": count(model.vlm.visual),
        "action finetune": inside["action"],
        "action pretrain": count(nnx.eval_shape(
            lambda: experts.ActionExpert(pretrain, nnx.Rngs(0)))),
        "und": inside["und"],
        "sum inside Motus": sum(inside.values()),
        "trainable": sum(int(np.prod(x.shape)) for path, x in arrays(model).items() if paths[path]),
        "vae encoder": count(model.vae.encoder),
        "vae decoder": count(model.vae.decoder),
        "vae conv1": count(model.vae.to_moments),
        "vae conv2": count(model.vae.from_latent),
        "vae total": count(model.vae),
        "umt5": count(nnx.eval_shape(lambda: umt5.UMT5(umt5.UMT5_XXL, nnx.Rngs(0)))),
    }


def params_command(_) -> int:
    found = counted()
    for name, expected in EXPECTED.items():
        verdict = "ok" if found[name] == expected else f"DIFFERS: expected {expected:,}"
        print(f"{name:18s} {found[name]:>15,}  {verdict}")
    return int(found != EXPECTED)


# ------------------------------------------------------------------ flops


def analytic(c: motus.Config) -> dict[str, float]:
    """FLOPs of one sample in closed form, from the sizes alone.

    Returns:
      `vae` and `vae first frame` (encode), `vlm`, `denoise` (text keys given), `text` (those keys,
      padding as one key), `adapter`, `forward` (the last three) and `train` (online, nothing
      recomputed, backward at twice the forward).
    """
    w, a, u, layers = c.wan, c.action, c.und, c.wan.num_layers
    frames, height, width, channels = c.latent_shape
    patch = int(np.prod(w.patch))
    video, actions, und = frames * height * width // patch, c.num_actions, c.und_tokens
    act, text, joint = a.leading + actions + a.registers, c.text_rows + 1, w.dim
    state = a.leading * ((a.state_dim or 0) * a.dim + 2 * a.dim**2)
    layer = (video * (6 * w.dim**2 + 2 * w.dim * w.ffn_dim)
             + act * (4 * a.dim * joint + 2 * a.dim * a.ffn_dim)
             + und * (4 * u.dim * joint + 2 * u.dim * u.ffn_dim)
             + 2 * (video + act + und) ** 2 * joint + 2 * video * text * joint)
    ends = (2 * video * patch * channels * w.dim + w.freq_dim * w.dim + 7 * w.dim**2
            + 256 * a.dim + 7 * a.dim**2
            + state + actions * (2 * a.action_dim * a.dim + 2 * a.dim**2))
    keys = text * (layers * 2 * w.dim**2 + w.text_dim * w.dim + w.dim**2)
    adapter = und * (u.input_dim * u.dim + (u.adapter_layers - 1) * u.dim**2)
    macs = {"denoise": layers * layer + ends, "text": keys, "adapter": adapter, "vlm": vlm_macs(c),
            "vae": vae_macs(c.vae, 1 + c.num_frames, c.height, c.width),
            "vae first frame": vae_macs(c.vae, 1, c.height, c.width)}
    out = {name: 2.0 * value for name, value in macs.items()}
    out["forward"] = out["denoise"] + out["text"] + out["adapter"]
    out["train"] = 3 * out["forward"] + out["vlm"] + out["vae"]
    return out


def vlm_macs(c: motus.Config) -> int:
    v, t = c.vlm.vision, c.vlm.text
    patches = c.vlm_image[0] * c.vlm_image[1] // v.patch**2
    wide, tokens, length = v.dim * v.merge**2, patches // v.merge**2, c.und_tokens
    block = patches * (4 * v.dim**2 + 2 * v.dim * v.ffn_dim) + 2 * patches**2 * v.dim
    merger = tokens * (wide**2 + wide * v.out_dim)
    heads, shared = t.num_heads * t.head_dim, t.num_kv_heads * t.head_dim
    layer = (length * t.dim * (2 * heads + 2 * shared + 3 * t.ffn_dim) + 2 * length**2 * heads)
    return (v.num_layers * block + patches * int(np.prod(v.patch_shape)) * v.dim
            + (1 + len(v.taps)) * merger + t.num_layers * layer)


def vae_macs(c: wan_vae.Config, frames: int, height: int, width: int) -> int:
    """Encoder; a temporal tap is multiplied only with the frames it can see."""

    def conv(i, o):
        return sum(max(frames - lag, 0) for lag in range(3)) * area * 9 * i * o

    def block(i, o):
        return conv(i, o) + conv(o, o) + (frames * area * i * o if i != o else 0)

    area = height * width // c.patch_size**2
    widths = [c.enc_dim * m for m in (1, *c.dim_mult)]
    total = conv(3 * c.patch_size**2, widths[0])
    for i, o, temporal in zip(widths, widths[1:], (*c.temporal_downsample, None), strict=False):
        total += block(i, o) + (c.num_res_blocks - 1) * block(o, o)
        if temporal is None:
            continue
        area //= 4
        total += frames * area * 9 * o * o
        if temporal and frames > 1:
            frames = 1 + (frames - 1) // 2
            total += (frames - 1) * area * 3 * o * o
    o = widths[-1]
    total += 2 * block(o, o) + frames * (4 * area * o**2 + 2 * area**2 * o)
    return total + conv(o, 2 * c.z_dim) + frames * area * (2 * c.z_dim) ** 2


def measured(c: motus.Config) -> dict[str, float]:
    """FLOPs of one sample as the program multiplies them; the names are those of `analytic`."""
    c = dataclasses.replace(c, remat="none")
    build = functools.partial(motus.build, c)
    model = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    values, batch = arrays(model), motus.batch_spec(c, 1)

    def on(fn):
        return lambda values, *args: fn(bind(model, values), *args)

    def given(model, batch, first):
        out = motus.condition(model, batch, first)
        return out._replace(text_kv=mot.precompute_text(model.wan.blocks, out.text))

    latents = jax.ShapeDtypeStruct((1, *c.latent_shape), np.float32)
    conditions = jax.eval_shape(on(given), values, batch, latents)
    noise = jax.ShapeDtypeStruct((1,), np.float32)
    out = {
        "vae": flops.count(on(motus.encode_video), values, batch),
        "vae first frame": flops.count(on(motus.encode_first_frame), values, batch),
        "vlm": flops.count(on(motus.vlm_features), values, batch),
        "denoise": flops.count(on(motus.velocities), values, latents, batch["actions"], noise,
                               noise, conditions),
    }
    update, abstract = train_program(c, values)
    out["train"] = flops.count(update, abstract, batch)
    return out


def train_program(c: motus.Config, values: dict):
    """The update of the trainer and its abstract state."""
    run = optimizer_config()
    tx = optimizer.make(run, values)
    flags = optimizer.trainable(values, run)
    trainable = {path: x for path, x in values.items() if flags[path]}
    frozen = {path: x for path, x in values.items() if not flags[path]}
    model = nnx.eval_shape(lambda: motus.build(c, nnx.Rngs(0)))
    update = functools.partial(
        step.train_step, loss=motus.loss, plan=state.Layout(model, tuple(trainable), {}), tx=tx,
        learning_rate=functools.partial(optimizer.learning_rate, run), seed=0)
    abstract = state.TrainState(jax.ShapeDtypeStruct((), np.int32), trainable, frozen,
                                jax.eval_shape(tx.init, trainable), None)
    return update, abstract


def flops_command(args) -> int:
    c = policy_config("8b")
    print(f"robotwin, one sample, {c.und_tokens} VLM tokens, {c.text_rows} text rows and one key "
          "for the padding; TFLOP")
    model, program = analytic(c), measured(c)
    for name, value in program.items():
        print(f"{name:16s} {value / 1e12:8.3f}   analytic {model[name] / 1e12:8.3f}   "
              f"ratio {value / model[name]:.4f}")
    target, source = {"train": model["train"], "denoise": model["denoise"]}, "analytic"
    if args.reference:
        text = pathlib.Path(args.reference).read_text()
        r = json.loads(text[max(text.rfind("\n{"), 0):])
        target = {"train": 3 * r["fwd_min"] + r["vlm"] + r["vae9"], "denoise": r["step_min2"]}
        source = args.reference
    print(f"reference: {source}")
    ratios = [f"{name} {program[name] / target[name]:.4f}" for name in ("train", "denoise")]
    print("ratio " + " ".join(ratios))
    return 0


# ------------------------------------------------------------------ train, chunk


def random_batch(c: motus.Config, size: int, mesh) -> dict[str, jax.Array]:
    """A batch without padding tokens on the devices; every prompt starts with its image."""
    rng = np.random.default_rng(0)
    highest = {"vlm_tokens": 256, "frames": 256, "vlm_image": 256}

    def draw(name, spec):
        if name == "text_len":
            return np.full(spec.shape, c.text_rows, spec.dtype)
        if spec.dtype == np.bool_:
            return np.ones(spec.shape, bool)
        if np.issubdtype(spec.dtype, np.integer):
            return rng.integers(0, highest.get(name, 1), spec.shape).astype(spec.dtype)
        return rng.standard_normal(spec.shape, np.float32)

    batch = {name: draw(name, spec) for name, spec in motus.batch_spec(c, size).items()}
    if "vlm_tokens" in batch:
        block = c.vlm.vision.patch * c.vlm.vision.merge
        image_tokens = c.vlm_image[0] // block * (c.vlm_image[1] // block)
        batch["vlm_tokens"][:, :image_tokens] = c.vlm.image_token
    return sharding.put_batch(batch, mesh)


def train_command(args) -> int:
    cached = tuple(filter(None, args.cached.split(",")))
    c = policy_config(args.size, remat=args.remat, cached=cached)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    with jax.set_mesh(mesh):
        build, run = functools.partial(motus.build, c), optimizer_config()
        plan = state.layout(build, lambda p: optimizer.trainable(p, run), mesh)
        update, abstract = train_program(c, arrays(plan.model))
        current = state.create(build, plan, update.keywords["tx"], mesh, 0, ema=False)
        batch = random_batch(c, args.batch, mesh)
        start = time.perf_counter()
        compiled = jax.jit(update, donate_argnums=0).lower(current, batch).compile()
        compile_seconds = time.perf_counter() - start
        for _ in range(args.warmup):
            current, metrics = compiled(current, batch)
        jax.block_until_ready(current)
        start = time.perf_counter()
        for _ in range(args.steps):
            current, metrics = compiled(current, batch)
        jax.block_until_ready(current)
        seconds = (time.perf_counter() - start) / args.steps
    # Recomputed work is not useful work: MFU counts the step without rematerialisation.
    plain, _ = train_program(dataclasses.replace(c, remat="none"), arrays(plan.model))
    per_sample = flops.count(plain, abstract, motus.batch_spec(c, 1))
    rate = args.batch / seconds
    return report(args, {
        "remat": args.remat, "cached": list(c.cached), "steps": args.steps,
        "loss": float(metrics["total_loss"]), "step_seconds": seconds, "samples_per_second": rate,
        "tflop_per_sample": per_sample / 1e12, "mfu": mfu(per_sample * rate, args.peak_tflops),
        "compile_seconds": compile_seconds, **memory(compiled)})


def chunk_command(args) -> int:
    c = policy_config(args.size)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    with jax.set_mesh(mesh):
        build = functools.partial(motus.build, c)
        plan = state.layout(build, lambda p: dict.fromkeys(p, False), mesh)

        def init(seed):  # weights in the dtype of the matmuls: nothing is trained here
            values = arrays(build(nnx.Rngs(jax.random.key(seed))))
            return {path: x.astype(c.dtype) if x.dtype == np.float32 else x
                    for path, x in values.items()}

        values = jax.jit(init, out_shardings=plan.shardings)(0)
        batch = random_batch(c, args.batch, mesh)

        def sample(values, batch, seed):
            return motus.sample(bind(plan.model, values), batch, jax.random.key(seed))["actions"]

        start = time.perf_counter()
        compiled = jax.jit(sample).lower(values, batch, np.int32(0)).compile()
        compile_seconds = time.perf_counter() - start
        spent = []
        for i in range(args.warmup + args.calls):
            start = time.perf_counter()
            jax.block_until_ready(compiled(values, batch, np.int32(i)))
            spent.append(time.perf_counter() - start)
        total = flops.count(sample, values, batch, jax.ShapeDtypeStruct((), np.int32))
    p50, p90 = np.percentile(spent[args.warmup:], [50, 90])
    return report(args, {
        "sample_steps": c.sample_steps, "calls": args.calls, "p50_ms": 1e3 * p50,
        "p90_ms": 1e3 * p90, "tflop_per_chunk": total / args.batch / 1e12,
        "mfu": mfu(total / p50, args.peak_tflops), "compile_seconds": compile_seconds,
        **memory(compiled)})


def mfu(flops_per_second: float, peak_tflops: float | None) -> float | None:
    """Share of the peak of all devices; None where the peak is unknown."""
    kind = jax.devices()[0].device_kind
    peak = max(((len(k), v) for k, v in PEAK.items() if kind.startswith(k)), default=(0, None))[1]
    peak = peak_tflops * 1e12 if peak_tflops else peak
    return None if peak is None else flops_per_second / (peak * jax.device_count())


def memory(compiled) -> dict[str, float | None]:
    """GB of one device: the allocator's peak (None where it keeps none), the program's own need."""
    stats, need = jax.local_devices()[0].memory_stats(), compiled.memory_analysis()
    program = (need.argument_size_in_bytes + need.output_size_in_bytes + need.temp_size_in_bytes
               - need.alias_size_in_bytes)
    return {"peak_gb": stats["peak_bytes_in_use"] / 1e9 if stats else None,
            "program_gb": program / 1e9}


def report(args, values: dict) -> int:
    line = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", *sys.argv]), "what": args.what, "size": args.size,
            "batch": args.batch, "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(), "jax": jax.__version__, **values}
    for name, value in line.items():
        print(f"{name:20s} {f'{value:.6g}' if isinstance(value, float) else value}")
    with pathlib.Path(args.log).open("a") as file:
        file.write(json.dumps(line) + "\n")
    return 0


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("params", help="parameters of the released sizes").set_defaults(
        run=params_command)
    sub = commands.add_parser("flops", help="FLOPs of a training and a denoising step")
    sub.add_argument("--reference", help="file that ends with the totals of another model, as JSON")
    sub.set_defaults(run=flops_command)
    for name, run in (("train", train_command), ("chunk", chunk_command)):
        sub = commands.add_parser(name, help=f"measure {name} on the devices at hand")
        sub.add_argument("--size", choices=SIZES, default="8b")
        sub.add_argument("--batch", type=positive, default=1, help="samples over all devices")
        sub.add_argument("--warmup", type=positive, default=2)
        sub.add_argument("--peak_tflops", type=float, help="of a device that is not in PEAK")
        sub.add_argument("--log", default="bench_log.jsonl")
        sub.set_defaults(run=run)
        if name == "train":
            sub.add_argument("--steps", type=positive, default=20)
            sub.add_argument("--remat", choices=("none", "dots", "full"), default="full")
            sub.add_argument("--cached", default="", help="of latents,vlm_features")
        else:
            sub.add_argument("--calls", type=positive, default=50)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
