"""What launchers do: sharded weights, accelerate's files, processes that don't come."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import launched
import pytest
import torch
from align_world import TINY, double
from test_align_run import close, run, weights
from torch.multiprocessing import ProcessRaisedException, start_processes

import midward.models
from midward.alignment import AlignError
from midward.alignment.run import _check_launch
from midward.alignment.trainer import read_curve

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "accelerate"


def torchrun(model, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += [HERE / "launched.py", folder]
    started = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = started.communicate(timeout=240)
    finally:
        # torchrun's own children too, should they hang.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 0 or list(folder.glob("failed-*")), errors[-3000:]


def forks(model, folder):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = start_processes(launched.forked, (port, model, folder), nprocs=2, join=False, start_method="fork")
    try:
        deadline = time.monotonic() + 240
        while not started.join(timeout=5):
            assert time.monotonic() < deadline, "the processes don't end"
    except ProcessRaisedException:
        assert list(folder.glob("failed-*")), "the run under DDP failed"
    finally:
        for process in started.processes:
            process.kill()


@pytest.fixture(scope="module", params=[forks, pytest.param(torchrun, marks=pytest.mark.slow)])
def two_processes(request, tmp_path_factory):
    """Where two processes ran `align` under DDP (two/), then trained sharded models (failed-* if they couldn't).

    One start serves both tests. Forks have imported all, which takes a launcher most of its time.
    """
    folder = tmp_path_factory.mktemp("processes")
    request.param(double(), folder)
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
