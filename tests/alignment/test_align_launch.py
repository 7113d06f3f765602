"""What launchers do: sharded weights, accelerate's files, processes that don't come."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from align_world import TINY
from test_align_run import close, run, weights

import midward.models
from midward.alignment import AlignError
from midward.alignment.run import _check_launch
from midward.alignment.trainer import read_curve

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "accelerate"

# One start serves both tests: what takes time are the imports.
TWO = """
import sys, traceback
sys.path[:0] = [{here!r}, {here!r} + "/.."]
from pathlib import Path
from types import SimpleNamespace
import torch
import torch.distributed as dist
torch.set_num_threads(1)
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from align_world import BENIGN, HARMFUL, SENTENCES, SMALL, TINY
from peft.utils.other import fsdp_auto_wrap_policy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
import midward.models
from midward.alignment import MosaObjective, resolve
from midward.alignment.data import SentenceCollator, SentenceSchedule, encode_prompts
from midward.alignment.run import _adapted
from midward.alignment.sentences import encode_sentences
from midward.alignment.trainer import _through, save_adapter

from conftest import model64
from test_align_run import run

run(getattr(model64, "__wrapped__", model64)(), {out!r} + "/two", max_steps=5, micro_batch=1)
rank = dist.get_rank()
mesh = dist.init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))


def by_torch(network):
    # The head is never called as a module, so a unit of its own stays in shards while the objective reads it.
    base = network.get_base_model()
    for part in (*base.model.layers, base.lm_head, network):
        fully_shard(part, mesh=mesh)


def by_accelerate(network):
    # As Trainer prepares an adapter: peft's policy makes units of the layers, and of the adapter's parts in them.
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy=fsdp_auto_wrap_policy(network), cpu_ram_efficient_loading=False,
        reshard_after_forward=True,
    )
    like = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no", is_main_process=rank == 0,
        device=torch.device("cpu"), torch_device_mesh=mesh,
        parallelism_config=SimpleNamespace(fsdp_dim_names=("shard",)),
    )
    assert fsdp2_prepare_model(like, network) is network


def check(shard, dtype, checkpointing):
    config = resolve({{**SMALL, "reveal": 0.3, "gradient_checkpointing": checkpointing}})
    model = midward.models.load(TINY, device="cpu", dtype=dtype)
    harmful, calm = (encode_prompts(model, rows, config, "data") for rows in (HARMFUL, BENIGN))
    sentences = encode_sentences(model, SENTENCES, config)
    schedule = SentenceSchedule(config, harmful, calm, sentences, model.family.end_ids[0])
    collate = SentenceCollator(config, model.family, sentences.longest)
    batches = [collate([schedule[0], schedule[1]]), collate([schedule[2], schedule[3]])]
    with _adapted(model, config):
        network = model.network.train()
        trained = {{name: p for name, p in network.named_parameters() if p.requires_grad}}
        with torch.no_grad():
            for name, p in trained.items():
                if "lora_B" in name:
                    p.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
        objective = MosaObjective(model, config)
        assert objective.linear is not None
        losses = []
        for batch in batches:
            terms = _through(network, network, lambda: objective(batch))
            (terms.loss / 2).backward()
            losses.append(terms.loss.item())
        expected = {{name: p.grad.clone() for name, p in trained.items()}}
        network.zero_grad()

        shard(network)
        trained = {{name: p for name, p in network.named_parameters() if p.requires_grad}}
        assert all(isinstance(p, DTensor) for p in network.parameters())
        step = torch.optim.AdamW(trained.values(), lr=1e-4)
        terms = _through(network, network, lambda: objective(batches[rank]))
        terms.loss.backward()
        assert abs(terms.loss.item() - losses[rank]) <= 1e-5 * abs(losses[rank])
        for name, p in trained.items():
            torch.testing.assert_close(p.grad.full_tensor(), expected[name], rtol=1e-4, atol=1e-5)
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        step.step()
        after = torch.tensor(_through(network, network, lambda: objective(batches[rank])).loss.item())
        dist.all_reduce(after)
        assert after < sum(losses), (after, losses)
        folder = Path({out!r}) / shard.__name__
        save_adapter(network, folder, write=rank == 0)
        whole = {{name: p.full_tensor().detach() for name, p in trained.items()}}
    dist.barrier()
    reloaded = midward.models.load(TINY, device="cpu", dtype=dtype, adapter=folder).network
    for name, p in reloaded.named_parameters():
        if "lora_" in name:
            assert torch.equal(p, whole[name])


try:
    check(by_torch, torch.float32, False)
    check(by_accelerate, torch.bfloat16, True)
except Exception:
    (Path({out!r}) / f"failed-{{rank}}").write_text(traceback.format_exc())
    raise
finally:
    dist.destroy_process_group()
"""


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Where two processes ran `align` under DDP (two/), then trained sharded models (failed-* if they couldn't)."""
    folder = tmp_path_factory.mktemp("processes")
    script = folder / "script.py"
    script.write_text(TWO.format(here=str(HERE), out=str(folder)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    started = subprocess.Popen(
        [*command, str(script)], env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, errors = started.communicate(timeout=240)
    finally:
        # torchrun's own children too, should they hang.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 0 or list(folder.glob("failed-*")), errors[-3000:]
    return folder


def test_two_processes_equal_one(two_processes, model64, tmp_path):
    one, two = run(model64, tmp_path / "one", max_steps=5), two_processes / "two"
    assert close(weights(one.adapter), weights(two))
    for name, value in one.history[-1].items():
        assert read_curve(two / "reward.csv")[-1][name] == pytest.approx(value, rel=1e-6), name


def test_sharded_weights_give_the_gradients_of_whole_ones_and_a_whole_adapter(two_processes):
    assert [path.read_text() for path in two_processes.glob("failed-*")] == []


# --- accelerate's files ------------------------------------------------------------


@pytest.mark.parametrize("name, kind", [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("deepspeed_zero2", "DEEPSPEED")])
def test_the_files_are_what_accelerate_reads(name, kind):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))  # refuses entries that it doesn't know
    assert config.distributed_type == kind and config.mixed_precision == "no" and config.num_processes == 4


def test_the_launcher_asks_for_fsdp2_with_the_file_s_settings(monkeypatch):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    command = f"--config_file {CONFIGS / 'fsdp2.yaml'} -m midward align --processes 4 --model DIR --out OUT"
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command.split()))
    assert arguments.training_script == "midward" and arguments.training_script_args[:2] == ["align", "--processes"]
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert os.environ["ACCELERATE_USE_FSDP"] == "true" and plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True and not plugin.cpu_ram_efficient_loading


# --- what launchers don't say --------------------------------------------------------


def test_fewer_processes_than_asked_for_is_an_error(model, tmp_path):
    with pytest.raises(AlignError, match="processes=2 were asked for and 1 run"):
        run(model, tmp_path / "a", processes=2)
    assert not (tmp_path / "a").exists()
    told = []
    run(model, tmp_path / "a", processes=1, on_start=lambda *line: told.append(line), max_steps=5, micro_batch=2)
    assert told == [(5, "processes 1: 5 steps of 4 prompts = 1 processes x 2 accumulated x 2; from the start")]


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharding_that_accelerate_would_ignore_is_an_error(model, tmp_path, monkeypatch, kind):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(AlignError, match="the model is on the CPU, where accelerate ignores it"):
        run(model, tmp_path / "a")


def test_deepspeed_is_refused_where_it_would_change_the_dtypes(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    on_gpu = {"device": torch.device("cuda", 0)}
    _check_launch(1, None, SimpleNamespace(dtype=torch.float32, **on_gpu))
    with pytest.raises(AlignError, match=r"beside a model in torch.bfloat16; use --dtype float32"):
        _check_launch(1, None, SimpleNamespace(dtype=torch.bfloat16, **on_gpu))


def test_a_quantised_base_learns(tmp_path):
    pytest.importorskip("bitsandbytes")
    model = midward.models.load(TINY, device="cpu", quantize="4bit")
    before = model.fingerprint
    result = run(model, tmp_path / "a", max_steps=10, gradient_checkpointing=True)
    assert result.history[-1]["reward"] > result.history[0]["reward"]
    assert model.fingerprint == before and model.quantized == "4bit"
    loaded = midward.models.load(TINY, adapter=result.adapter, device="cpu", quantize="4bit")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert not torch.equal(loaded.hidden(ids), model.hidden(ids))
        with loaded.reference():
            assert torch.equal(loaded.hidden(ids), model.hidden(ids))
